"""How mAP grows with the persons and pictures that a model learns from.

    python -m tests.bench.how_much_data [--photographs DIR] [--storage runs] [--seeds 0 1 2]

Trains the demo recipe on subsets of a generated set, and of the photographs in DIR, in this process
and on one thread. The test stays the same. Every training is kept in the storage when it is done;
what is there is not trained again. Writes `results/how-much-data.md` and `.json` of what there is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpmpp_core.config import Config, load_config
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.data.manifest import read_manifest
from dpmpp_core.data.plan import StepPlan, class_labels
from dpmpp_core.data.steps import StepMaker, TrainingImages
from dpmpp_core.demo import generate
from dpmpp_core.models.encoder import ImageEncoder
from dpmpp_core.models.person_masks import SpectralMasks
from dpmpp_core.models.pixels import to_tensor_batch
from dpmpp_core.models.reid import ReidModel, start_clip
from dpmpp_core.retrieval import Embeddings, compute_chance, rank_features
from dpmpp_core.tasks.metric import MetricTask
from dpmpp_core.tasks.prompts import PromptTask
from pipelines.reporting.tables import label_queries
from pipelines.runtime.tracking import environment
from pipelines.stages.evaluate import query_sets
from pipelines.training.masks import transfer_grid
from pipelines.training.training_set import TrainingSet
from tests.bench.first_epoch import train
from tests.bench.timing import RESULTS

NAME = "how-much-data"
SIZE = "data.height=128", "data.width=64"  # four times cheaper than the recipe's
DRAWN = "data.demo.train_identities=80", "data.demo.train_images=16"
PERSONS = {"drawn people": (10, 20, 40, 80), "photographs": (5, 10, 20, 38)}
PICTURES = 4, 8, 16
Job = tuple[int, int, int]  # persons, pictures of each, seed
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(arguments.storage) / NAME
    drawn = folder / "drawn"
    if not drawn.exists():
        generate(drawn, load_config("demo", DRAWN).data.demo)
    roots = {"photographs": Path(arguments.photographs)} if arguments.photographs else {}
    sources = {name: Source(root) for name, root in (roots | {"drawn people": drawn}).items()}
    for name, source in sources.items():
        for seed in arguments.seeds:
            for job in sorted(jobs(PERSONS[name], seed), key=lambda one: one[0] * one[1]):
                measure_once(folder / "trainings.jsonl", name, source, job)
                write(folder / "trainings.jsonl", sources, arguments)


def jobs(persons: tuple[int, ...], seed: int) -> Iterator[Job]:
    """Yield the trainings of a seed; 0 persons is the model that training starts from."""
    if seed == 0:
        yield 0, 0, 0
    yield from ((count, pictures, seed) for count in persons for pictures in PICTURES)


def measure_once(file: Path, name: str, source: Source, job: Job) -> None:
    """Add a line with the figures of a training to the file, unless it has one."""
    persons, pictures, seed = job
    key = {"data": name, "persons": persons, "pictures": pictures, "seed": seed}
    if any(key.items() <= row.items() for row in read(file)):
        return
    row = key | source.measure(*job)
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    print(row, flush=True)


def read(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class Source:
    """A data set in memory: training pictures to choose from, and a fixed test."""

    def __init__(self, root: Path) -> None:
        base = load_config("demo", SIZE)
        self.manifest = read_manifest(str(root))
        rows = self.manifest.subset("train")
        self.paths = np.array(rows["path"].to_pylist())
        self.pids, self.camids = rows["pid"].to_numpy(), rows["camid"].to_numpy()
        self.images = self._read(self.paths, base)
        ratio = base.saliency.target_ratio
        self.masks = SpectralMasks(transfer_grid(base), ratio)(self.images, list(self.paths))
        self.tests = dict(query_sets(self.manifest)) | {"gallery": self.manifest.subset("gallery")}
        self.test_images = {
            name: self._read(table["path"].to_pylist(), base) for name, table in self.tests.items()
        }

    def measure(self, persons: int, pictures: int, seed: int) -> dict[str, float]:
        """Train on a subset that the seed draws; mAP of each query set, and images learnt from."""
        config = load_config("demo", [*SIZE, f"seed={seed}"])
        torch.manual_seed(seed)
        if not persons:
            model = ReidModel(config.model, config.data, start_clip(config))  # the package's own
            model.start_head()
            return self._figures(model.eval()) | {"images": 0}
        chosen = self._choose(persons, pictures, np.random.default_rng(seed))
        model = self._train(config, chosen)
        return self._figures(model) | {"images": len(chosen)}

    def _read(self, paths: Any, config: Config) -> NDArray[np.uint8]:
        size = config.data.height, config.data.width
        return np.stack([resize(read_image(self.manifest.root, path), *size) for path in paths])

    def _choose(self, persons: int, pictures: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw rows: persons, and of each as many pictures of every camera as possible."""
        chosen: list[int] = []
        for pid in rng.permutation(np.unique(self.pids))[:persons]:
            rows = rng.permutation(np.flatnonzero(self.pids == pid))
            turn = np.array([np.sum(self.camids[rows[:i]] == self.camids[row])
                             for i, row in enumerate(rows)])  # fmt: skip
            chosen += rows[np.argsort(turn, kind="stable")][:pictures].tolist()
        return np.sort(np.array(chosen))

    def _train(self, config: Config, rows: NDArray[np.int64]) -> ReidModel:
        """Stages 1 and 2, as `dpmpp run` has them on one worker."""
        labels, _ = class_labels(self.pids[rows])
        texts, scale = self._learn_prompts(config, rows, labels)
        section, camids = config.metric, self.camids[rows]
        plan = StepPlan(labels, camids, section.identities, section.images, config.seed)
        parts = TrainingSet(config, "", "", "")
        maker = StepMaker(
            TrainingImages(self.manifest.root, self.paths[rows].tolist(), labels, camids,
                           self.masks[rows]),
            plan, config.data, config.augment, config.occlusion,
            visibility=parts.has_visibility, attention_masks=parts.attention_masks,
        )  # fmt: skip
        task = MetricTask(config, texts, scale, plan.steps_per_epoch)
        batches = (
            {name: torch.from_numpy(np.asarray(value)) for name, value in maker.make(step).items()}
            for step in range(plan.steps_per_epoch * section.epochs)
        )
        train(task, batches)
        return task.model

    def _learn_prompts(
        self, config: Config, rows: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> tuple[torch.Tensor, float]:
        encoder = ImageEncoder(start_clip(config).visual, config.model.taps).eval()
        pixels = to_tensor_batch(self.images[rows], config.data.mean, config.data.std)
        with torch.inference_mode():
            features = torch.cat([encoder(part).joint.float() for part in pixels.split(64)])
        task = PromptTask(config, features.clone(), torch.from_numpy(labels))
        train(task, task.batches(0))
        learned = task.results()
        return learned["texts"], float(learned["scale"])

    def _figures(self, model: ReidModel) -> dict[str, float]:
        """mAP with masks, in percent, of each query set."""
        gallery = self._embed(model, "gallery")
        figures = {}
        for name in self.tests:
            if name != "gallery":
                query = self._embed(model, name)
                ids = query.pids, gallery.pids, query.camids, gallery.camids
                ranked = rank_features(query.features, query.masks, gallery.features, *ids)
                figures[name] = round(100 * float(ranked.metrics()["mAP"]), 3)
        return figures

    def _embed(self, model: ReidModel, name: str) -> Embeddings:
        table, result = self.tests[name], model.embed(self.test_images[name])
        pids, camids = table["pid"].to_numpy(), table["camid"].to_numpy()
        return Embeddings(result.features, result.masks, pids, camids, table["path"].to_pylist())


def write(file: Path, sources: dict[str, Source], arguments: argparse.Namespace) -> None:
    """Write the results that there are."""
    rows = read(file)
    versions = environment()
    packages = ", ".join(f"{k} {v}" for k, v in versions["packages"].items())
    command = "python -m tests.bench.how_much_data"
    if arguments.photographs:
        command += f" --photographs {Path(arguments.photographs).name}"
    lines = [
        "# How much data is needed",
        "",
        f"`{command} --seeds {' '.join(map(str, arguments.seeds))}`; {date.today().isoformat()}. "
        f"mAP in percent, with masks, mean ± std over {len(arguments.seeds)} seeds; a cell of "
        "fewer says so. A seed draws the persons, their pictures and the training. 0 persons: the "
        "package's own model. "
        f"The demo recipe with pictures of {SIZE[0][12:]} x {SIZE[1][11:]} pixels; the "
        "pictures of a person are of as many cameras as possible.",
    ]
    for name, source in sources.items():
        lines += ["", f"## {name.capitalize()}", "", *describe(source)]
        for query_set in ("occluded", "holistic"):
            lines += ["", f"{label_queries(query_set).capitalize()} queries:", ""]
            found = [row for row in rows if row["data"] == name]
            lines += table(found, query_set, len(arguments.seeds))
    lines += [
        "",
        f"One thread of {os.cpu_count()} cores ({platform.machine()}, no GPU); "
        f"Python {versions['python']}; {packages}.",
    ]
    (RESULTS / f"{NAME}.md").write_text("\n".join(lines) + "\n")
    text = ",\n".join(json.dumps(row) for row in rows)
    (RESULTS / f"{NAME}.json").write_text(f"[\n{text}\n]\n")


def describe(source: Source) -> list[str]:
    """What the test is, and what chance would reach."""
    gallery = source.tests["gallery"]
    ids = gallery["pid"].to_numpy(), gallery["camid"].to_numpy()
    chances = []
    for name, query in source.tests.items():
        if name != "gallery":
            mean_ap, _ = compute_chance(query["pid"].to_numpy(), ids[0],
                                        query["camid"].to_numpy(), ids[1])  # fmt: skip
            chances.append(f"{100 * mean_ap:.1f} ({label_queries(name)})")
    return [
        f"Test: {len(np.unique(ids[0]))} other persons, {len(gallery)} pictures in the gallery; "
        f"chance {', '.join(chances)}."
    ]


def table(rows: list[Row], query_set: str, seeds: int) -> list[str]:
    """A line per number of persons, a column per number of pictures."""
    lines = [
        f"| persons | {' | '.join(f'{count} pictures each' for count in PICTURES)} |",
        f"|---:|{'---:|' * len(PICTURES)}",
    ]
    for persons in sorted({row["persons"] for row in rows}):
        found = [row for row in rows if row["persons"] == persons]
        if persons == 0:
            cells = [f"{found[0][query_set]:.1f}"] + [""] * (len(PICTURES) - 1)
        else:
            cells = [
                spread([row[query_set] for row in found if row["pictures"] == count], seeds)
                for count in PICTURES
            ]
        lines.append(f"| {persons} | {' | '.join(cells)} |")
    return lines


def spread(values: list[float], seeds: int) -> str:
    """Mean ± std, and how many there are if some are missing."""
    if not values:
        return "-"
    few = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
    mean = f"{statistics.mean(values):.1f}"
    return mean + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "") + few


if __name__ == "__main__":
    main()
