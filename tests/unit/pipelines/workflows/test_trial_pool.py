"""A trial's process uses Ray Data on the nodes for data, as the driver does."""

from __future__ import annotations

from typing import Any

import pytest
import ray.data

from dpmpp_core.config import load_config
from pipelines.tuning import trials
from pipelines.workflows import trial_pool

NODES = load_config("demo", ["cluster.data_nodes=[pool=data]"])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Labels that data sets of the trial would be placed by."""
    context = ray.data.DataContext.get_current().copy()
    monkeypatch.setattr(ray.data.DataContext, "get_current", staticmethod(lambda: context))
    found: list[Any] = []

    def look(*_: Any, **__: Any) -> Any:
        found.append(context.execution_options.label_selector)
        raise InterruptedError

    monkeypatch.setattr(trial_pool.Trial, "stages", look)
    monkeypatch.setattr(trials, "load_measured", look)
    return found


def test_trials_of_a_comparison(seen: list[Any]) -> None:
    nothing: Any = None
    trial = trial_pool.Trial("plain 0", NODES, nothing, nothing, nothing)
    with pytest.raises(InterruptedError):
        trial_pool._run_trial({"number": 0}, [trial], "runs", nothing)
    assert seen == [{"pool": "data"}]


def test_trials_of_a_search(seen: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = None
    context = trials.SearchContext(NODES, nothing, nothing, "runs", nothing, nothing, nothing)
    names = type("Context", (), {"get_trial_id": lambda self: "t"})
    monkeypatch.setattr(trials.tune, "get_context", names)
    with pytest.raises(InterruptedError):
        trials._run_trial({"number": 0}, context)
    assert seen == [{"pool": "data"}]
