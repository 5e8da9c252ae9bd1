"""A published protocol from its data to a table: counts, training, first epoch, comparison."""

from __future__ import annotations

import json
import logging
import statistics
from dataclasses import dataclass, field, replace
from typing import Any

from dpmpp_core.config import load_config
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.published import PUBLISHED, compare_counts
from dpmpp_core.errors import ArgumentError, ConfigError, DataError
from dpmpp_core.models.clip import check_weights
from dpmpp_core.protocols import FIGURES, Protocol, load_protocol, needs, protocol_names
from dpmpp_core.tasks.first_epoch import Window, outside_first_epoch
from pipelines.runtime.storage import Storage
from pipelines.stages.prepare import find_data
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import run_pipeline

log = logging.getLogger(__name__)

PLACES = ("cluster.", "tracking.")  # configuration that changes no figure


@dataclass(frozen=True, kw_only=True)
class ReproductionRequest:
    """The options of `dpmpp reproduce`; see its `--help`."""

    protocol: str
    data: str | None
    test_data: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    any_counts: bool = False
    overrides: list[str] = field(default_factory=list)
    storage: str = "runs"
    tracking_uri: str | None = None
    address: str | None = None

    def training_options(self, protocol: Protocol, seed: int) -> Options:
        """Return those of the run that trains, and tests where that is the same folder."""
        return Options(
            data=self.data, config=protocol.recipe, overrides=[*self.overrides, f"seed={seed}"],
            storage=self.storage, tracking_uri=self.tracking_uri, address=self.address,
        )  # fmt: skip

    def test_options(self, protocol: Protocol, seed: int, model: str | None) -> Options:
        """Return those of the run that tests on another folder, without the changes of `data.*`."""
        assert protocol.test is not None
        options = self.training_options(protocol, seed)
        kept = [item for item in options.overrides if not item.strip().startswith("data.")]
        recipe = protocol.test.recipe
        return replace(options, data=self.test_data, config=recipe, overrides=kept, model=model)


def list_protocols() -> dict[str, Any]:
    """Return every protocol by name: its data, published figures and estimated needs."""
    protocols = {}
    for name in protocol_names():
        protocol = load_protocol(name)
        protocols[name] = {
            **protocol.model_dump(mode="json"),
            "bracket": {figure: protocol.bracket(figure) for figure in FIGURES},
            "needed": _describe_needs(protocol),
            "estimated": needs(protocol).model_dump(),
        }
    return protocols


def _describe_needs(protocol: Protocol) -> str:
    """Return the folders that the command takes, by what they hold."""
    folders = {"--data": protocol.dataset}
    if protocol.test is not None:
        folders["--test-data"] = protocol.test.dataset
    needed = []
    for option, dataset in folders.items():
        counts = PUBLISHED[dataset]
        images = ", ".join(f"{number:,} {split}" for split, (number, _) in counts.items())
        needed.append(f"{option} {dataset} ({images} images)")
    return ", ".join(needed)


def reproduce(request: ReproductionRequest) -> dict[str, Any]:
    """Train and test with every seed, and compare the figures with the published ones.

    Finished stages are reused, so the same command continues where it was stopped. Nothing is
    trained before configuration, weights, both folders and their counts are checked.

    Returns:
        what `--json` prints, also stored as `reproduce/PROTOCOL.json`; figures in percent.

    Raises:
        UserError: arguments, configuration, weights or data; counts that are not the published
            ones, unless `any_counts`.
    """
    protocol = load_protocol(request.protocol)
    _check_request(request, protocol)
    differences = _count_differences(request, protocol)
    if differences and not request.any_counts:
        raise DataError(
            f"{protocol.title}: not the published data: {'; '.join(differences)}. Complete the "
            "folder, or continue with --any-counts; the figures are then not comparable"
        )
    for difference in differences:
        log.warning("counts: %s", difference)
    runs = []
    for seed in request.seeds:
        runs.append(_run_seed(request, protocol, seed))
        log.info("seed %d: rank-1 %.1f, mAP %.1f", seed, runs[-1]["rank1"], runs[-1]["mAP"])
    result = _summarise(request, protocol, runs, differences)
    storage = Storage(request.storage)
    storage.write(f"reproduce/{request.protocol}.json", json.dumps(result, indent=2).encode())
    return result


def _check_request(request: ReproductionRequest, protocol: Protocol) -> None:
    """Refuse what listings of the folders and the configuration show to be wrong."""
    if any(item.partition("=")[0].strip() == "seed" for item in request.overrides):
        raise ConfigError("seed is set by --seeds here, as in --seeds 0,1,2")
    config = load_config(protocol.recipe, request.overrides)
    if request.data is None:
        raise ArgumentError(f"{request.protocol}: --data is missing, the folder that is trained on")
    if protocol.test is None and request.test_data is not None:
        raise ArgumentError(
            f"{request.protocol} tests on the folder of --data: leave --test-data out"
        )
    find_data(config.data, request.data)
    if protocol.test is not None:
        if request.test_data is None:
            raise ArgumentError(
                f"{request.protocol}: --test-data is missing, the folder that is tested on "
                f"({protocol.test.dataset})"
            )
        options = request.test_options(protocol, request.seeds[0], None)
        test_config = load_config(options.config, options.overrides)
        find_data(test_config.data, request.test_data)
    check_weights(config.model)


def _count_differences(request: ReproductionRequest, protocol: Protocol) -> list[str]:
    """Return sentences on where the folders differ from the published counts; read every image.

    Raises:
        DataError: the query set that is compared is empty.
    """
    seed, differences = request.seeds[0], []
    folders = [(request.training_options(protocol, seed), protocol.dataset)]
    if protocol.test is not None:
        folders.append((request.test_options(protocol, seed, None), protocol.test.dataset))
    for options, dataset in folders:
        prepared = run_pipeline(options, until="prepare")
        folder = Storage(request.storage).fetch(prepared["stages"][-1]["key"])
        manifest = Manifest.load(folder)
        sentences = compare_counts(manifest, dataset)
        left_out = prepared["counts"]["quarantined"]
        if sentences and left_out:
            listed = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
            sentences.append(f"left out of the counts: {listed}")
        differences += [f"{dataset}: {sentence}" for sentence in sentences]
    if not manifest.subset("query", occluded=protocol.queries == "occluded").num_rows:
        raise DataError(f"{manifest.root} has no {protocol.queries} queries, which are compared")
    return differences


def _run_seed(request: ReproductionRequest, protocol: Protocol, seed: int) -> dict[str, Any]:
    """Train and test once."""
    trained = run_pipeline(request.training_options(protocol, seed), until="report")
    tested = trained
    if protocol.test is not None:
        options = request.test_options(protocol, seed, trained["model"])
        tested = run_pipeline(options, until="evaluate")
    figures = tested["metrics"][protocol.queries]["masked"]
    return {
        "seed": seed,
        "run": trained["run"],
        "model": trained["model"],
        "report": trained["report"],
        "seconds": sum(stage["seconds"] for stage in trained["stages"]),
        **{figure: 100 * figures[figure] for figure in FIGURES},
        "metrics": tested["metrics"],
        "first_epoch": _check_first_epoch(request, trained),
    }


def _check_first_epoch(request: ReproductionRequest, trained: dict[str, Any]) -> dict[str, Any]:
    """Return `losses`, `windows` and sentences on what is `outside`, of stage 2's first epoch."""
    (key,) = (stage["key"] for stage in trained["stages"] if stage["name"] == "metric")
    marker = Storage(request.storage).marker(key)
    assert marker is not None, key
    windows = {name: Window(*w) for name, w in marker["summary"]["first_epoch"].items()}
    first = marker["summary"]["history"][0]
    return {
        "losses": {name: first[name] for name in windows},
        "windows": {name: list(window) for name, window in windows.items()},
        "outside": list(outside_first_epoch(windows, first).values()),
    }


def _summarise(
    request: ReproductionRequest,
    protocol: Protocol,
    runs: list[dict[str, Any]],
    differences: list[str],
) -> dict[str, Any]:
    """Return the result of the command: mean and spread over seeds, verdict, caveats."""
    ours = {}
    for figure in FIGURES:
        values = [run[figure] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else None
        ours[figure] = {"mean": statistics.mean(values), "std": spread, "values": values}
    caveats = []
    if differences:
        caveats.append("the counts are not the published ones")
    changed = [item for item in request.overrides if not item.strip().startswith(PLACES)]
    if changed:
        caveats.append(f"settings were changed: {' '.join(changed)}")
    if len(runs) < 3:
        caveats.append("fewer than three seeds")
    if any(run["first_epoch"]["outside"] for run in runs):
        caveats.append("losses of the first epoch were outside their windows")
    return {
        "protocol": request.protocol,
        "title": protocol.title,
        "queries": protocol.queries,
        "data": request.data,
        "test_data": request.test_data,
        "seeds": list(request.seeds),
        "ours": ours,
        "published": [entry.model_dump() for entry in protocol.published],
        "bracket": {figure: protocol.bracket(figure) for figure in FIGURES},
        "verdict": protocol.verdict(*(ours[figure]["mean"] for figure in FIGURES)),
        "caveats": caveats,
        "count_differences": differences,
        "runs": runs,
    }
