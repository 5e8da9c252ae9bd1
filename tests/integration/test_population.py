"""Population-based training: parts of a training, and a search of them on real Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pipelines.population import RATES

from dpmpp_core.config import load_config
from pipelines.cluster import connect
from pipelines.prepare import find_data, prepare
from pipelines.run import Options, learn_prompts
from pipelines.saliency import saliency
from pipelines.stage import Run, Unfinished
from pipelines.storage import Storage
from pipelines.tracking import Tracking
from pipelines.train import train_metric
from pipelines.tune import Request, search
from tests.integration.conftest import SMALL


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_training_in_parts_is_the_training_in_one(
    cluster: None, small_demo: Path, tmp_path: Path
) -> None:
    config = load_config("demo", [*SMALL, f"{RATES}=[1.0,0.5]"])
    plan, _ = connect(None, config.cluster)
    run = Run(config, Storage(str(tmp_path)), Tracking(""), plan)
    prepared = prepare(run, find_data(config.data, str(small_demo)))
    masks = saliency(run, prepared)
    inputs = prepared, masks, learn_prompts(run, prepared, masks)
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
    with pytest.raises(Unfinished):
        train_metric(found, *inputs, until=2)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_population_copies_its_best_and_ends_in_a_configuration(
    cluster: None, small_demo: Path, tmp_path: Path
) -> None:
    request = Request("rates", 6, epochs=2, algorithm="pbt", rungs=2, share=0.4)
    options = Options(data=str(small_demo), overrides=SMALL, storage=str(tmp_path))
    result = search(options, request)
    trials: list[dict[str, Any]] = result["trials"]
    assert [trial["state"] for trial in trials] == ["done"] * 6
    assert [list(trial["rungs"]) for trial in trials] == [[1]] * 3 + [[2]] * 3
    assert [trial["parent"] for trial in trials[:4]] == [None, None, None, 0]
    assert trials[3]["changes"] == {}

    ranked = sorted(trials[:3], key=lambda trial: -trial["rungs"][1]["occluded"])
    for trial in trials[4:]:
        own = trials[trial["number"] - 3]
        if own is ranked[-1]:
            assert trial["parent"] == ranked[0]["number"]
            factors = trial["changes"][RATES]
            assert factors[0] == 1 and factors[1] in (0.8, 1.25)
        else:
            assert trial["parent"] == own["number"] and trial["changes"] == own["changes"]
    folder = Path(result["folder"])
    assert {"best.yaml", "population.png", "trials.md"} <= {file.name for file in folder.iterdir()}
    best = load_config(str(folder / "best.yaml"))
    usual = load_config("demo", SMALL)
    assert best.metric.lr == result["best_changes"].get("metric.lr", usual.metric.lr)
    again = search(options, request)  # nothing is left to do
    assert again["trials"] == trials
