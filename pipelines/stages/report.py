"""The report of a run and its pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from dpmpp_core.data.images import read_image, resize
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.names import distinguish
from dpmpp_core.data.steps import NO_OCCLUSION, StepMaker
from dpmpp_core.data.synthesis import CLEAN_QUERIES
from dpmpp_core.errors import DataError
from dpmpp_core.gallery.drawing import tint_patches
from dpmpp_core.redaction import redact
from dpmpp_core.retrieval import Embeddings, QueryFigures, find_worst_queries, top_matches
from dpmpp_core.retrieval.queries import from_table
from pipelines.inference.embeddings_file import load_embeddings
from pipelines.reporting.failures import build_failure_card
from pipelines.reporting.figures import (
    draw_cmc_curves,
    draw_contact_sheet,
    draw_masks,
    draw_ranked_lists,
    draw_robustness,
    draw_training_history,
    save_png,
)
from pipelines.reporting.gain_figure import draw_mask_gain
from pipelines.reporting.html import (
    Failures,
    Picture,
    Quarantined,
    ReportData,
    build_anchor,
    write_report,
)
from pipelines.reporting.mlflow_record import FIGURES_FOLDER
from pipelines.reporting.tables import label_queries
from pipelines.runtime.environment import environment
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.stages.evaluate import (
    METRICS_FILE,
    QUERIES_FILE,
    count_persons,
    read_occlusion_ratios,
)
from pipelines.stages.report_places import describe_origin, list_commands, list_links
from pipelines.training.masks import load_masks, transfer_grid
from pipelines.training.training_set import TrainingSet

Image = npt.NDArray[np.uint8]
PICTURES_FOLDER = "pictures"
LISTED_QUERIES = 4
SHOWN_FAILURES = 6  # of the first query set, half as many of others
CELL = (256, 128)  # height and width of a query
SHOWN_PAIRS = 8
SHEET = 16
HISTORY = ("loss", "triplet", "masked_visual", "masked_joint", "identity_visual", "identity_joint",
           "text", "text_transfer", "heads", "accuracy_visual", "accuracy_joint",
           "mask_visual_std_samples", "mask_joint_std_samples", "mask_visual_std_channels",
           "mask_joint_std_channels", "data_wait_share")  # fmt: skip


def build_report(
    run: Run,
    prepared: Stage,
    saliency: Stage,
    metric: Stage,
    evaluated: Stage,
    robustness: Stage | None = None,
) -> Stage:
    """Write `report.html`, self-contained, and its pictures as PNG files.

    The page names its MLflow run, so that every run has a report of its own.
    """
    identity = {"evaluate": evaluated.key, "metric": metric.key, "prepare": prepared.key}
    identity |= {"robustness": robustness.key} if robustness else {}
    identity |= {"tracking": redact(run.tracking.uri), "run": str(run.tracking.run_id)}

    def build(folder: Path) -> dict[str, Any]:
        manifest = Manifest.load(run.folder(prepared))
        source = run.folder(evaluated)
        measured = json.loads((source / METRICS_FILE).read_text())
        queries = {
            name: load_embeddings(source / f"{name}.safetensors") for name in measured["cmc"]
        }
        gallery = load_embeddings(source / "gallery.safetensors")
        history = [
            {k: v for k, v in row.items() if k == "epoch" or k in HISTORY}
            for row in metric.summary["history"]
        ]
        ranked = from_table(pq.read_table(source / QUERIES_FILE))
        failures = _find_failures(manifest, queries, gallery, ranked)
        pictures = _retrieval_pictures(manifest, measured, queries, gallery)
        if robustness is not None:
            pictures.append(_robustness_picture(robustness))
        pictures += _training_pictures(run, prepared, saliency, manifest, history)
        _save_pictures(folder / PICTURES_FOLDER, pictures, measured["intervals"])
        quarantine = [Quarantined(**row) for row in manifest.quarantine.to_pylist()]
        write_report(
            folder / "report.html",
            ReportData(
                title=f"DPM++: {run.config.name}",
                byline=describe_origin(),
                facts=_facts(run, prepared, metric),
                metrics=measured["metrics"],
                mask_statistics=measured["masks"],
                intervals=measured["intervals"],
                persons=count_persons(prepared),
                failures=failures,
                visibility=measured["visibility"],
                strata=measured["strata"],
                multi_shot=measured.get("multi_shot", {}),
                stages=list(run.stages),
                quarantine=quarantine,
                thumbnails=_thumbnails(manifest, quarantine),
                pictures=pictures,
                warnings=metric.summary["warnings"],
                links=list_links(run, prepared, metric),
                commands=list_commands(run, prepared, metric, _pick_query(queries)),
            ),
        )
        return {"pictures": len(pictures)}

    stage = run.build_stage("report", identity, build)
    run.tracking.log_artifact(run.folder(stage) / "report.html")
    for picture in sorted((run.folder(stage) / PICTURES_FOLDER).glob("*.png")):
        run.tracking.log_artifact(picture, FIGURES_FOLDER)
    return stage


def _save_pictures(folder: Path, pictures: list[Picture], intervals: dict[str, Any]) -> None:
    for picture in pictures:
        assert not isinstance(picture.image, bytes)
        save_png(folder / f"{build_anchor(picture.title)}.png", picture.image)
    if any("gain" in kinds for kinds in intervals.values()):
        save_png(folder / "what-the-own-mask-adds.png", draw_mask_gain(intervals))


def _find_failures(
    manifest: Manifest,
    queries: dict[str, Embeddings],
    gallery: Embeddings,
    ranked: dict[str, QueryFigures],
) -> dict[str, Failures]:
    """Return the worst failures of every query set that has any."""
    failures: dict[str, Failures] = {}
    for name, query in queries.items():
        shown = SHOWN_FAILURES // (2 if failures else 1)
        worst = find_worst_queries(query, gallery, ranked[name], shown)
        paths = [query.paths[failure.query] for failure in worst]
        shares = read_occlusion_ratios(manifest.root, paths)
        cards = [
            build_failure_card(
                failure, query, gallery, float(share), lambda path: read_image(manifest.root, path)
            )
            for failure, share in zip(worst, shares, strict=True)
        ]
        failed = int((ranked[name].first_match_rank > 1).sum())
        if cards:
            failures[name] = Failures(failed, len(query), cards)
    return failures


def _pick_query(queries: dict[str, Embeddings]) -> str | None:
    return next((query.paths[0] for query in queries.values()), None)


def _facts(run: Run, prepared: Stage, metric: Stage) -> dict[str, object]:
    summary = prepared.summary
    versions = environment()
    return {
        "configuration": run.config.name,
        "data": summary["root"],
        "layout": summary["layout"],
        "data set identity": summary["dataset_id"][:16],
        **{name: _count(values) for name, values in summary["counts"].items() if values},
        "backbone": run.config.model.backbone,
        "pre-trained": run.config.model.pretrained or run.config.model.checkpoint or "no",
        "seed": run.config.seed,
        "weights SHA-256": metric.summary["weights_sha256"][:16],
        "Python": versions["python"],
        "packages": ", ".join(f"{k} {v}" for k, v in versions["packages"].items()),
    }


def _count(values: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in values.items())


def _retrieval_pictures(
    manifest: Manifest,
    measured: dict[str, Any],
    queries: dict[str, Embeddings],
    gallery: Embeddings,
) -> list[Picture]:
    def load(path: str) -> Image:
        return read_image(manifest.root, path)

    pictures = [
        Picture(
            "CMC curves",
            "Share of queries whose person is among the first k of the ranking.",
            draw_cmc_curves(measured["cmc"]),
            folded=True,
        )
    ]
    for name, query in queries.items():
        label, folded = label_queries(name), name != next(iter(queries))
        pictures.append(
            Picture(
                f"Ranked lists of {label} queries",
                "Left the query, then the best of the gallery, with and without its mask. Green: "
                "the same person. Red: another person. The upper half are right at rank 1, the "
                "lower half are not, as far as there are such queries.",
                draw_ranked_lists(query, gallery, _examples(query, gallery), load),
                folded,
            )
        )
        if query.occluded is not None:
            pictures.append(
                Picture(
                    f"Occluders in {label} queries",
                    "Red: patches that, as the model believes, hide a part of the body. The later "
                    "blocks of the encoder do not attend to them.",
                    _draw_occluded(query, _examples(query, gallery), load),
                    folded,
                )
            )
        masks = {space: mask for space, mask in query.masks.items() if mask.std() > 0}
        if masks:
            pictures.append(
                Picture(
                    f"Masks of {label} queries",
                    "Which dimensions of the identity space each query trusts.",
                    draw_masks(masks),
                    folded=True,
                )
            )
    return pictures


def _draw_occluded(query: Embeddings, rows: list[int], load: Callable[[str], Image]) -> Image:
    assert query.occluded is not None
    cells: list[Image] = []
    captions: list[str] = []
    for row, name in zip(rows, _name_pictures([query.paths[row] for row in rows]), strict=True):
        image = resize(load(query.paths[row]), *CELL)
        masked = query.occluded[row] > 0.5
        cells += [image, tint_patches(image, masked)]
        captions += [name, f"{masked.mean():.0%} masked"]
    return draw_contact_sheet(cells, captions, 8)


def _name_pictures(paths: list[str]) -> list[str]:
    """Return as much of each path as tells the pictures apart, without endings if that is enough.

    Captions are cut at their end, so a shorter one shows more.
    """
    names = distinguish(paths)
    stems = [str(Path(name).with_suffix("")) for name in names]
    return stems if len(set(stems)) == len(set(names)) else names


def _robustness_picture(stage: Stage) -> Picture:
    measured = stage.summary["measured"]
    parts = {part: bands for part, bands in measured.items() if part != CLEAN_QUERIES}
    missed = sum(band["missed"] for bands in parts.values() for band in bands.values())
    left_out = f" {missed} times the share could not be reached for a query." if missed else ""
    changed = " A donor's silhouette also changes the scene around the person."
    return Picture(
        "Robustness",
        "Clean queries, more and more hidden behind scenes of the training images, against the "
        f"clean gallery.{changed if 'any' in parts else ''}{left_out}",
        draw_robustness(measured),
        folded=True,
    )


def _examples(query: Embeddings, gallery: Embeddings) -> list[int]:
    """Return queries right at rank 1 and wrong ones, half each if possible, evenly spaced."""
    rows = range(len(query))
    best, _ = top_matches(query, gallery, 1, "masked", rows)
    right = gallery.pids[best[:, 0]] == query.pids
    half = LISTED_QUERIES // 2
    chosen: list[int] = []
    for group in (right, ~right):
        index = np.flatnonzero(group)
        picks = np.linspace(0, len(index) - 1, min(half, len(index))).round().astype(int)
        chosen += index[picks].tolist()
    return chosen


def _training_pictures(
    run: Run, prepared: Stage, saliency: Stage, manifest: Manifest, history: list[dict[str, float]]
) -> list[Picture]:
    config = run.config
    paths = manifest.subset("train")["path"].to_pylist()
    some = [paths[i] for i in np.linspace(0, len(paths) - 1, SHEET).round().astype(int)]
    masks = load_masks(run.folder(saliency), some, transfer_grid(config))
    size = config.data.height, config.data.width
    shaded = [
        _shade(resize(read_image(manifest.root, path), *size), mask)
        for path, mask in zip(some, masks, strict=True)
    ]
    maker = TrainingSet(config, run.storage.uri, prepared.key, saliency.key).build_step_maker()
    batch = maker.make(0)
    captions = [
        "not mixed" if donor == NO_OCCLUSION else "mixed" for donor in batch["donor_labels"]
    ]
    shown = range(min(2 * SHEET, len(captions)))
    return [
        Picture(
            "Person masks",
            "Training images; everything outside the person mask is darkened.",
            draw_contact_sheet(shaded, _name_pictures(some), 8),
            folded=True,
        ),
        Picture(
            "Training batch",
            "The first images of the training: augmented, and partly hidden behind the scene of "
            "another image of the batch.",
            draw_contact_sheet(
                [batch["images"][i] for i in shown], [captions[i] for i in shown], 8
            ),
            folded=True,
        ),
        *_pairs_picture(maker, config.occlusion.rolling),
        Picture(
            "Training",
            "Losses, accuracy and mask figures by epoch, each on its own scale.",
            draw_training_history(history),
            folded=True,
        ),
    ]


def _pairs_picture(maker: StepMaker, rolled: bool) -> list[Picture]:
    """Show how occlusions of the first step are composed; nothing where there are none."""
    cells: list[Image] = []
    captions: list[str] = []
    for pair in maker.mixed_pairs(0)[:SHOWN_PAIRS]:
        cells += [
            pair.recipient,
            pair.donor,
            _shade(pair.donor, pair.donor_mask),
            pair.mixed,
            _shade(pair.mixed, pair.visible),
        ]
        hidden = f"{pair.occlusion_ratio:.0%} hidden"
        captions += ["recipient", "donor", "its person", hidden, "still visible"]
    if not cells:
        return []
    text = (
        f"The recipient{', rolled sideways,' if rolled else ''} is visible where the donor's "
        "person was; the donor's scene hides the rest."
    )
    return [
        Picture(
            "Pairs and their transfer", text, draw_contact_sheet(cells, captions, 10), folded=True
        )
    ]


def _shade(image: Image, mask: npt.NDArray[np.bool_]) -> Image:
    size = (image.shape[1], image.shape[0])
    light = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    return (image * (0.3 + 0.7 * light[..., None])).astype(np.uint8)


def _thumbnails(manifest: Manifest, quarantine: list[Quarantined]) -> dict[str, Image | None]:
    """Return pictures of the first files that were left out; None where one is unreadable."""
    thumbnails: dict[str, Image | None] = {}
    for row in quarantine[:200]:
        try:
            thumbnails[row.path] = read_image(manifest.root, row.path)
        except DataError:
            thumbnails[row.path] = None
    return thumbnails
