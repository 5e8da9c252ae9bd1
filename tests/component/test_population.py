"""Population-based training: segments of a training, and a search of them on real Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpmpp_core.config import load_config
from pipelines.runtime.resources import connect
from pipelines.runtime.run import Run
from pipelines.runtime.stage import StageNotFoundError
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import Tracking
from pipelines.stages.prepare import find_data, prepare
from pipelines.stages.saliency import compute_person_masks
from pipelines.stages.train import train_metric
from pipelines.tuning.search import TuningRequest, search
from pipelines.tuning.spaces import RATES_KEY
from pipelines.workflows.options import Options
from tests.support.configs import TEXTLESS, TEXTLESS_CONFIG


@pytest.mark.slow
def test_a_training_in_parts_is_the_training_in_one(
    cluster: None, small_demo: Path, tmp_path: Path
) -> None:
    config = load_config(TEXTLESS_CONFIG, [*TEXTLESS, f"{RATES_KEY}=[1.0,0.5]"])
    plan, _ = connect(None, config.cluster)
    run = Run(config, Storage(str(tmp_path)), Tracking(""), plan)
    prepared = prepare(run, find_data(config.data, str(small_demo)))
    masks = compute_person_masks(run, prepared)
    inputs = prepared, masks, None
    whole = train_metric(run, *inputs)
    parts = train_metric(run, *inputs, until=2)  # makes the first part too
    assert parts.key != whole.key
    assert parts.summary["weights_sha256"] == whole.summary["weights_sha256"]
    lrs = [[epoch["lr"] for epoch in stage.summary["history"]] for stage in (parts, whole)]
    assert lrs[0] == lrs[1] and lrs[0][0] != lrs[0][1]

    other = config.model_copy(
        update={"metric": config.metric.model_copy(update={"rates": (1.0, 2.0)})}
    )
    found = replace(run, config=other, build=False)
    first = train_metric(found, *inputs, until=1)  # what they have in common is trained once
    assert first.reused and first.summary["steps"] * 2 == parts.summary["steps"]
    with pytest.raises(StageNotFoundError):
        train_metric(found, *inputs, until=2)


@pytest.mark.slow
def test_a_population_copies_its_best_and_ends_in_a_configuration(
    cluster: None, small_demo: Path, tmp_path: Path
) -> None:
    request = TuningRequest(
        space="rates",
        trials=3,
        epochs=2,
        scheduler="pbt",
        perturbation_interval=1,
        share=0.4,
        seed=1,
    )
    options = Options(
        data=str(small_demo), config=TEXTLESS_CONFIG, overrides=TEXTLESS, storage=str(tmp_path)
    )
    result = search(options, request)
    trials: list[dict[str, Any]] = result["trials"]
    assert [trial["state"] for trial in trials] == ["done"] * 3
    assert [list(trial["rungs"]) for trial in trials] == [[1, 2]] * 3
    assert trials[0]["changes"] == {}

    copies = [trial for trial in trials if RATES_KEY in trial["changes"]]
    assert len(copies) == 1  # the worst quarter, the start excepted
    factors = copies[0]["changes"][RATES_KEY]
    assert factors[0] == 1 and factors[1] in (0.8, 1.25)
    donors = [t for t in trials if t["rungs"][1] == copies[0]["rungs"][1] and t is not copies[0]]
    assert [{**donor["changes"], RATES_KEY: factors} for donor in donors] == [copies[0]["changes"]]
    folder = Path(result["folder"])
    written = {file.name for file in folder.iterdir()}
    assert {"best.yaml", "intermediate-values.png", "trials.md"} <= written
    best = load_config(str(folder / "best.yaml"))
    usual = load_config(TEXTLESS_CONFIG, TEXTLESS)
    assert best.metric.lr == result["best_changes"].get("metric.lr", usual.metric.lr)
    assert best.metric.rates == tuple(result["best_changes"].get(RATES_KEY, [1.0]))
    again = search(options, request)  # nothing is left to do
    assert again["trials"] == trials
