"""Trials of a search made cheap: real training and validation in this process, without Ray.

What `dpmpp tune` computes, from the same parts: the same split of identities, queries hidden by
the same `Synthesiser`, the same losses, steps, schedule and objectives, on a generated data set of
few and small pictures. What trials share - masks, prompts, hidden queries - is made once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from dpmpp_core.config import Config, load_config
from dpmpp_core.config.schedule import shorten_schedule
from dpmpp_core.config.space import as_overrides
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.data.manifest import read_manifest
from dpmpp_core.data.occlusion_ratios import occlusion_ratios
from dpmpp_core.data.plan import StepPlan, class_labels
from dpmpp_core.data.steps import StepMaker, TrainingImages
from dpmpp_core.data.synthesis import PARTS, Synthesiser
from dpmpp_core.data.validation import hold_out
from dpmpp_core.demo import generate
from dpmpp_core.models.encoder import ImageEncoder
from dpmpp_core.models.person_masks import SpectralMasks
from dpmpp_core.models.pixels import to_tensor_batch
from dpmpp_core.models.reid import ReidModel, start_clip
from dpmpp_core.models.tensors import read_tensors
from dpmpp_core.retrieval import Embeddings, rank_features
from dpmpp_core.retrieval.objectives import compute_objectives
from dpmpp_core.tasks.metric import MetricTask
from dpmpp_core.tasks.prompts import PromptTask
from pipelines.reporting.figures import CLEAN_QUERIES
from pipelines.training.masks import transfer_grid
from pipelines.training.training_set import TrainingSet
from pipelines.tuning.trials import OCCLUSION_BANDS
from tests.bench.first_epoch import train

BASE = [
    "data.height=128", "data.width=64", "data.demo.train_identities=90", "data.demo.cameras=3",
    "data.demo.train_images=4", "metric.identities=8", "metric.epochs=6",
]  # fmt: skip
SHARE = 0.5  # of the training identities, held out

Pictures = NDArray[np.uint8]


class Workshop:
    """What all trials share, and a way to run one.

    Args:
        folder: where the generated data set is, or is to be.
        recipe: what trials change.
        overrides: of the recipe, for all trials.
    """

    def __init__(self, folder: Path, recipe: str = "demo", overrides: Sequence[str] = BASE) -> None:
        torch.set_num_threads(1)
        self._recipe, self._overrides = recipe, overrides
        self.base = load_config(recipe, overrides)
        if not folder.exists():
            generate(folder, self.base.data.demo)
        whole = read_manifest(str(folder))
        shares = occlusion_ratios(whole.root, whole.images["path"].to_pylist())
        self.manifest = hold_out(whole, SHARE, 0, shares)
        self._paths = self.manifest.images["path"].to_pylist()
        size = self.base.data.height, self.base.data.width
        self._pictures = np.stack([resize(read_image(whole.root, p), *size) for p in self._paths])
        self._masks: dict[float, NDArray[np.bool_]] = {}
        self._splits = np.array(self.manifest.images["split"].to_pylist())
        self._pids = self.manifest.images["pid"].to_numpy()
        self._camids = self.manifest.images["camid"].to_numpy()
        self._occluded = self.manifest.images["occluded"].to_numpy(zero_copy_only=False)
        self.texts, self.scale = self._prompts(folder.with_name("prompts.safetensors"))
        self._hidden = self._hide()

    def measure(self, changes: dict[str, Any], epochs: int, seed: int = 0) -> dict[str, float]:
        """Train for so many epochs, a rung as a search has it; the objectives in [0, 1]."""
        changed = [*self._overrides, *as_overrides(changes), f"seed={seed}"]
        config = load_config(self._recipe, changed)
        return self._objectives(self._trained(shorten_schedule(config, epochs)))

    def counts(self) -> str:
        """Images and identities of each split, as a sentence."""
        counts = {name: one for name, one in self.manifest.counts().items() if one}
        each = (f"{name} {one['images']} of {one['identities']}" for name, one in counts.items())
        return f"Images of identities: {', '.join(each)}."

    def _rows(self, split: str) -> NDArray[np.int64]:
        return np.flatnonzero(self._splits == split)

    def _person_masks(self, config: Config) -> NDArray[np.bool_]:
        """Of all images; bool [N, gh, gw]."""
        share = config.saliency.target_ratio
        if share not in self._masks:
            find = SpectralMasks(transfer_grid(config), share)
            self._masks[share] = find(self._pictures, self._paths)
        return self._masks[share]

    @torch.no_grad()
    def _features(self, rows: NDArray[np.int64]) -> torch.Tensor:
        data = self.base.data
        encoder = ImageEncoder(start_clip(self.base).visual, self.base.model.taps).eval()
        parts = [
            encoder(to_tensor_batch(self._pictures[part], data.mean, data.std)).joint.float()
            for part in np.split(rows, range(64, len(rows), 64))
        ]
        return torch.cat(parts)

    def _prompts(self, file: Path) -> tuple[torch.Tensor, float]:
        """Stage 1, which no key of the shipped space changes; kept in `file`."""
        if file.exists():
            kept = read_tensors(file)
            return kept["texts"], float(kept["scale"])
        rows = self._rows("train")
        labels = torch.from_numpy(class_labels(self._pids[rows])[0])
        task = PromptTask(self.base, self._features(rows), labels)
        train(task, task.batches(0))
        learned = task.results()
        save_file(learned, file)
        return learned["texts"], float(learned["scale"])

    def _hide(self) -> dict[str, dict[str, tuple[Pictures, NDArray[np.int64]]]]:
        """Clean queries hidden: part -> band -> pictures and their rows."""
        queries = self._rows("query")
        clean = queries[~self._occluded[queries]]
        masks, base = self._person_masks(self.base), self.base
        hider = Synthesiser(
            self.manifest.root, self._paths, masks, self._rows("train"), base.data,
            base.occlusion, base.seed,
        )  # fmt: skip
        found: dict[str, dict[str, tuple[Pictures, NDArray[np.int64]]]] = {}
        for part in PARTS:
            found[part] = {}
            for band in OCCLUSION_BANDS:
                made = {int(row): hider.make(int(row), band, part) for row in clean}
                images = [one.image for one in made.values() if one is not None]
                rows = [row for row, one in made.items() if one is not None]
                found[part][str(band)] = np.stack(images), np.array(rows)
        return found

    def _trained(self, config: Config) -> ReidModel:
        """Stage 2, as `pipelines.training.worker` runs it on one worker."""
        rows = self._rows("train")
        labels, _ = class_labels(self._pids[rows])
        camids, section = self._camids[rows], config.metric
        plan = StepPlan(
            labels, camids, section.identities, section.images, config.seed,
            by_images=section.sampling == "images",
        )  # fmt: skip
        maker = StepMaker(
            TrainingImages(
                self.manifest.root, [self._paths[row] for row in rows], labels, camids,
                self._person_masks(config)[rows],
            ),
            plan, config.data, config.augment, config.occlusion,
            visibility=(parts := TrainingSet(config, "", "", "")).has_visibility,
            attention_masks=parts.attention_masks,
        )  # fmt: skip
        torch.manual_seed(config.seed)
        task = MetricTask(config, self.texts, self.scale, plan.steps_per_epoch)
        steps = range(plan.steps_per_epoch * section.epochs)
        batches = (
            {name: torch.from_numpy(np.asarray(value)) for name, value in maker.make(step).items()}
            for step in steps
        )
        train(task, batches)
        return task.model

    def _objectives(self, model: ReidModel) -> dict[str, float]:
        """As `SearchContext.measure` has them; also `made` and `real`, the parts of `occluded`."""
        gallery = self._embedded(
            model, self._pictures[self._rows("gallery")], self._rows("gallery")
        )
        hidden: dict[str, dict[str, Any]] = {
            part: {
                band: {"mAP_masked": self._precision(model, *found, gallery)}
                for band, found in bands.items()
            }
            for part, bands in self._hidden.items()
        }
        made = [figure["mAP_masked"] for bands in hidden.values() for figure in bands.values()]
        queries = self._rows("query")
        hidden[CLEAN_QUERIES] = {"queries": int((~self._occluded[queries]).sum())}
        metrics: dict[str, Any] = {}
        for name, wanted in (("occluded", True), ("holistic", False)):
            rows = queries[self._occluded[queries] == wanted]
            if len(rows):
                figure = self._precision(model, self._pictures[rows], rows, gallery)
                metrics[name] = {"masked": {"mAP": figure}, "num_queries": len(rows)}
        result = compute_objectives(metrics, hidden)
        result["made"] = float(np.mean(made))
        if "occluded" in metrics:
            result["real"] = metrics["occluded"]["masked"]["mAP"]
        return {name: round(value, 6) for name, value in result.items()}

    def _embedded(
        self, model: ReidModel, pictures: Pictures, rows: NDArray[np.int64]
    ) -> Embeddings:
        embedded = model.embed(pictures)
        names = [self._paths[row] for row in rows]
        return Embeddings(
            embedded.features, embedded.masks, self._pids[rows], self._camids[rows], names
        )

    def _precision(
        self, model: ReidModel, pictures: Pictures, rows: NDArray[np.int64], gallery: Embeddings
    ) -> float:
        """Mean average precision with masks."""
        query = self._embedded(model, pictures, rows)
        ids = query.pids, gallery.pids, query.camids, gallery.camids
        ranked = rank_features(query.features, query.masks, gallery.features, *ids)
        return float(ranked.metrics()["mAP"])


class Memory:
    """Workshop results in a file of lines, shared by processes: no trial is trained twice."""

    def __init__(self, workshop: Workshop, file: Path) -> None:
        self._workshop, self._file = workshop, file
        self._read = 0
        self._known: dict[str, dict[str, float]] = {}

    def measure(self, changes: dict[str, Any], epochs: int, seed: int = 0) -> dict[str, float]:
        """As `Workshop.measure`; out of the file if it is there."""
        self._refresh()
        key = json.dumps([changes, epochs, seed], sort_keys=True)
        if key not in self._known:
            values = self._workshop.measure(changes, epochs, seed)
            line = {"changes": changes, "epochs": epochs, "seed": seed, "values": values}
            with self._file.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._known[key] = values
        return self._known[key]

    def _refresh(self) -> None:
        if not self._file.exists():
            return
        with self._file.open() as file:
            file.seek(self._read)
            while (line := file.readline()).endswith("\n"):
                row = json.loads(line)
                key = json.dumps([row["changes"], row["epochs"], row["seed"]], sort_keys=True)
                self._known[key] = row["values"]
                self._read = file.tell()


def print_each(function: Callable[..., object], jobs: Iterable[tuple[Any, ...]]) -> None:
    """Call with the arguments of each job, as many processes as cores; print what is returned.

    Processes are forked: they have the workshop that was made before.
    """
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        for done in as_completed([pool.submit(function, *job) for job in jobs]):
            print(done.result(), flush=True)
