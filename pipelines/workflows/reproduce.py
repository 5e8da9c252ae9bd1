"""A published protocol from its data to a table: counts, training, first epoch, comparison."""

from __future__ import annotations

import json
import logging
import statistics
from dataclasses import dataclass, field
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
from pipelines.workflows.pipeline import Options, run_pipeline

log = logging.getLogger(__name__)

PLACES = ("cluster.", "tracking.")  # configuration that changes no figure


@dataclass(frozen=True)
class ReproductionRequest:
    """What a user asks for; see `dpmpp reproduce --help`."""

    protocol: str
    data: str | None
    test_data: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    any_counts: bool = False
    overrides: list[str] = field(default_factory=list)
    storage: str = "runs"
    tracking_uri: str | None = None
    address: str | None = None

    def training(self, protocol: Protocol, seed: int) -> Options:
        """The run that trains, and tests where that is the same folder."""
        overrides = [*self.overrides, f"seed={seed}"]
        places = self.storage, self.tracking_uri, self.address
        return Options(self.data, protocol.recipe, overrides, *places)

    def testing(self, recipe: str, seed: int, model: str | None) -> Options:
        """The run that tests on another folder; changes of `data.*` are the training folder's."""
        kept = [item for item in self.overrides if not item.strip().startswith("data.")]
        overrides = [*kept, f"seed={seed}"]
        places = self.storage, self.tracking_uri, self.address
        return Options(self.test_data, recipe, overrides, *places, model=model)


def list_protocols() -> dict[str, Any]:
    """Every protocol by name: its data, published figures and estimated needs."""
    listed = {}
    for name in protocol_names():
        protocol = load_protocol(name)
        listed[name] = {
            **protocol.model_dump(mode="json"),
            "bracket": {figure: protocol.bracket(figure) for figure in FIGURES},
            "needed": _needed(protocol),
            "estimated": needs(protocol).model_dump(),
        }
    return listed


def _needed(protocol: Protocol) -> str:
    """The folders that the command takes, by what they hold."""
    folders = {"--data": protocol.dataset}
    if protocol.test is not None:
        folders["--test-data"] = protocol.test.dataset
    said = []
    for option, dataset in folders.items():
        counts = PUBLISHED[dataset]
        images = ", ".join(f"{number:,} {split}" for split, (number, _) in counts.items())
        said.append(f"{option} {dataset} ({images} images)")
    return ", ".join(said)


def reproduce(request: ReproductionRequest) -> dict[str, Any]:
    """Train and test with every seed, and set the figures beside the published ones.

    Finished stages are reused, so the same command goes on where it was stopped. Nothing is trained
    before configuration, weights, both folders and their counts have been looked at.

    Returns:
        what `--json` prints, also stored as `reproduce/PROTOCOL.json`; figures in percent.

    Raises:
        UserError: arguments, configuration, weights or data; counts that are not the published
            ones, unless `any_counts`.
    """
    protocol = load_protocol(request.protocol)
    _check(request, protocol)
    differences = _differences(request, protocol)
    if differences and not request.any_counts:
        raise DataError(
            f"{protocol.title}: not the published data: {'; '.join(differences)}. Complete the "
            "folder, or go on with --any-counts; the figures are then not comparable"
        )
    for difference in differences:
        log.warning("counts: %s", difference)
    runs = []
    for seed in request.seeds:
        runs.append(_one_seed(request, protocol, seed))
        log.info("seed %d: rank-1 %.1f, mAP %.1f", seed, runs[-1]["rank1"], runs[-1]["mAP"])
    result = _compared(request, protocol, runs, differences)
    storage = Storage(request.storage)
    storage.write(f"reproduce/{request.protocol}.json", json.dumps(result, indent=2).encode())
    return result


def _check(request: ReproductionRequest, protocol: Protocol) -> None:
    """Refuse what a listing of the folders and the configuration can tell."""
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
        options = request.testing(protocol.test.recipe, request.seeds[0], None)
        test_config = load_config(options.config, options.overrides)
        find_data(test_config.data, request.test_data)
    check_weights(config.model)


def _differences(request: ReproductionRequest, protocol: Protocol) -> list[str]:
    """Sentences on where the folders differ from the published counts. Reads every image.

    Raises:
        DataError: the query set that is compared is empty.
    """
    seed, test = request.seeds[0], protocol.test
    looked = [(request.training(protocol, seed), protocol.dataset)]
    if test is not None:
        looked.append((request.testing(test.recipe, seed, None), test.dataset))
    found = []
    for options, dataset in looked:
        prepared = run_pipeline(options, until="prepare")
        folder = Storage(request.storage).fetch(prepared["stages"][-1]["key"])
        manifest = Manifest.load(folder)
        sentences = compare_counts(manifest, dataset)
        left_out = prepared["counts"]["quarantined"]
        if sentences and left_out:
            listed = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
            sentences.append(f"left out of the counts: {listed}")
        found += [f"{dataset}: {sentence}" for sentence in sentences]
    if not manifest.subset("query", occluded=protocol.queries == "occluded").num_rows:
        raise DataError(f"{manifest.root} has no {protocol.queries} queries, which are compared")
    return found


def _one_seed(request: ReproductionRequest, protocol: Protocol, seed: int) -> dict[str, Any]:
    """Train and test once."""
    trained = run_pipeline(request.training(protocol, seed), until="report")
    tested = trained
    if protocol.test is not None:
        options = request.testing(protocol.test.recipe, seed, trained["model"])
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
        "first_epoch": _first_epoch(request, trained),
    }


def _first_epoch(request: ReproductionRequest, trained: dict[str, Any]) -> dict[str, Any]:
    """`losses` and `windows` of stage 2's first epoch, and what is `outside`, in sentences."""
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


def _compared(
    request: ReproductionRequest,
    protocol: Protocol,
    runs: list[dict[str, Any]],
    differences: list[str],
) -> dict[str, Any]:
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
