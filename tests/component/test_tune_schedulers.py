"""Tune's schedulers as a search uses them, on real Ray with trials that train nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from ray import tune
from ray.tune.experiment import Trial

from dpmpp_core.config import ClusterConfig
from dpmpp_core.config.space import Range, Space
from dpmpp_core.errors import DataError
from pipelines.runtime.storage import Storage
from pipelines.runtime.tuner import build_tuner, run_tuner
from pipelines.tuning.measured import FACTOR_KEY, MEMBER_KEY, NUMBER_KEY
from pipelines.tuning.spaces import RATES_KEY, SearchSpec, TrialRecord
from pipelines.tuning.trials import build_scheduler, record_trial
from tests.support.s3_server import S3Server
from tests.support.trainable import trainable

SPACE = Space({"metric.lr": Range(low=0.0, high=1.0)})
MEMBERS = 5


class Killed(Exception):
    """Stands for the driver's end."""


def make_spec(scheduler: str, rungs: tuple[int, ...], brackets: int = 1) -> SearchSpec:
    start = {"metric.lr": 0.0, RATES_KEY: [1.0]}
    return SearchSpec(SPACE, start, ("occluded",), rungs, "tpe", scheduler, brackets)


def run(
    folder: Path,
    spec: SearchSpec,
    watch: Callable[[Sequence[Trial]], None] = lambda trials: None,
    uri: str | None = None,
) -> list[TrialRecord]:
    """One Tuner to its end, restored where there is one; its trials by number."""
    records: dict[int, TrialRecord] = {}

    def observe(trials: Sequence[Trial]) -> None:
        records.update({t.config[NUMBER_KEY]: record_trial(t, spec) for t in trials})
        watch(trials)

    points = [{NUMBER_KEY: n, "metric.lr": n / 10} for n in range(1, MEMBERS)]
    space = {MEMBER_KEY: tune.grid_search([{NUMBER_KEY: 0}, *points]), FACTOR_KEY: 1.0}
    if spec.scheduler != "pbt":
        space = {NUMBER_KEY: tune.grid_search(list(range(MEMBERS)))}
    tuner = build_tuner(
        Storage(uri or str(folder)),
        "search/tune-0000",
        tune.with_parameters(trainable, log=folder / "log", rungs=spec.rungs),
        ClusterConfig(),
        tune.TuneConfig(scheduler=build_scheduler(spec, 2), reuse_actors=True),
        space,
        {"epochs": spec.rungs[-1]},
    )
    run_tuner(tuner, observe)
    return [records[number] for number in sorted(records)]


def read_log(folder: Path) -> list[tuple[int, list[float]]]:
    """Member and learning rates of every segment that was trained, in order."""
    return [tuple(json.loads(line)) for line in (folder / "log").read_text().splitlines()]


def check_population(folder: Path, records: list[TrialRecord]) -> None:
    assert [record.number for record in records] == list(range(MEMBERS))
    assert records[0] == TrialRecord(0, {}, "done", records[0].rungs)
    assert all(list(record.rungs) == [2, 4, 6] for record in records if record.number != 3)
    assert (records[3].state, records[3].reason) == ("failed", "ValueError: out of luck")
    copies = [record for record in records[1:] if RATES_KEY in record.changes]
    assert copies
    for record in copies:
        rates = record.changes[RATES_KEY]
        assert len(rates) == 3 and rates[0] == 1
        assert all(round(b / a, 6) in (1.0, 0.8, 1.25) for a, b in pairwise(rates))
    rows = read_log(folder)
    assert all(rates == [1.0] * len(rates) for number, rates in rows if number == 0)
    assert len({(number, len(rates)) for number, rates in rows}) == 3 * MEMBERS - 2


def killer(
    spec: SearchSpec, rungs: int, known: dict[int, int] | None = None
) -> Callable[[Sequence[Trial]], None]:
    """Ends the driver's loop once so many rungs are measured; `known` gets what Tune has stored."""
    measured = {} if known is None else known

    def watch(trials: Sequence[Trial]) -> None:
        records = [record_trial(trial, spec) for trial in trials]
        now = {record.number: len(record.rungs) for record in records}
        if sum(now.values()) >= rungs:
            raise Killed  # before Tune has stored the newest results
        measured.update(now)

    return watch


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_population_keeps_its_start_and_survives_failures_and_kills(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    spec = make_spec("pbt", (2, 4, 6))
    kills = []
    for killed in (2, 7):
        known: dict[int, int] = {}
        with pytest.raises(Killed):
            run(tmp_path, spec, killer(spec, killed, known))
        kills.append((len(read_log(tmp_path)), known))
    check_population(tmp_path, run(tmp_path, spec))
    for trained, known in kills:  # what Tune had stored is not trained again, what it had not is
        later = {(number, len(rates)) for number, rates in read_log(tmp_path)[trained:]}
        assert not [one for one in later if one[1] <= known.get(one[0], 0)], (later, known)


@pytest.mark.long
def test_asha_never_stops_the_start_and_skips_the_rungs_of_a_bracket(
    cluster: None, tmp_path: Path
) -> None:
    records = run(tmp_path, make_spec("asha", (1, 3, 9), brackets=3))
    assert records[0].state == "done" and records[0].changes == {}
    rungs = [list(record.rungs) for record in records]
    assert all(one == [1, 3, 9][[1, 3, 9].index(one[0]) :][: len(one)] for one in rungs)
    assert all((one[-1] == 9) == (r.state == "done") for one, r in zip(rungs, records, strict=True))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_search_on_s3_is_restored(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    (tmp_path / "s3").mkdir()
    server, spec = S3Server(tmp_path / "s3"), make_spec("fifo", (4,))
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    try:
        with pytest.raises(Killed):
            run(tmp_path, spec, killer(spec, 2), "s3://results/runs")
        records = run(tmp_path, spec, uri="s3://results/runs")
    finally:
        server.stop()
    assert [record.state for record in records] == ["done"] * 3 + ["failed", "done"]
    assert records[3].reason == "ValueError: out of luck"
    rows = [json.loads(line)[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert {*rows} == {0, 1, 2, 4} and len(rows) < 8  # Tune may save its state a little later


def test_a_damaged_state_is_named(cluster: None, tmp_path: Path) -> None:
    state = tmp_path / "search" / "tune-0000"
    state.mkdir(parents=True)
    (state / "tuner.pkl").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"search/tune-0000 cannot be restored .*: delete it"):
        run(tmp_path, make_spec("fifo", (4,)))
