"""Gates: what may stand in one, and what each check says of facts."""

from __future__ import annotations

import numpy as np
import pytest

from dpmpp_core.config.gate import Gate, load_gate
from dpmpp_core.config.shipped import shipped_names
from dpmpp_core.errors import ConfigError
from dpmpp_core.gate import (
    budget_check,
    dataset_check,
    files_check,
    floor_checks,
    images_check,
    load_check,
    mask_checks,
    no_worse_checks,
    refused_by,
    reproduce_checks,
    rolled_back_check,
)
from dpmpp_core.retrieval.queries import QueryFigures, from_table, to_table

PERSONS = np.repeat(np.arange(30), 4)


def found(mean=0.6, spread=0.1, seed=0, persons=PERSONS):
    draw = np.random.default_rng(seed)
    precision = np.clip(draw.normal(mean, spread, len(persons)), 0.01, 1)
    first = np.where(precision > 0.5, 1, 7)
    return QueryFigures(tuple(f"{i}.jpg" for i in range(len(persons))), persons, precision, first)


def shifted(own, by):
    return QueryFigures(own.paths, own.pids, own.average_precision + by, own.first_match_rank)


@pytest.mark.parametrize("name", shipped_names("gates"))
def test_shipped_gates_are_read(name):
    gate = load_gate(name)
    assert gate.floors and gate.no_worse and gate.reproduce is not None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flors: {}", "unknown key 'flors'; did you mean 'floors'"),
        ("floors: {occluded.map: 0.5}", "no such figure; did you mean 'occluded.mAP'"),
        ("floors: {hidden.mAP: 0.5}", "floors.hidden.mAP: no such figure"),
        ("floors: {mAP: 1.5}", "floors.mAP"),
        ("floors: {mAP: '0.5'}", "floors.mAP"),
        ("identities: true", "identities"),
        ("identities: 1", "identities"),
        ("latency_ms: .nan", "latency_ms"),
        ("latency_ms: 10\nreproduce: null", "latency_ms needs reproduce"),
        ("dataset: market", "dataset"),
        ("- floors", "a mapping is needed, not list"),
        ("floors: {mAP: 0.1}\nfloors: {mAP: 0.9}", "stands here twice"),
    ],
)
def test_a_gate_with_a_mistake_is_refused(text, says, tmp_path):
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as refused:
        load_gate(str(path))
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


def test_an_unknown_gate_is_told_from_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'default'.*gates: default, demo"):
        load_gate("defalt")


def test_figures_by_query_survive_the_table_and_are_means_of_the_set():
    sets = {"occluded": found(), "holistic": found(0.8, seed=1)}
    sets["occluded"].average_precision[3] = np.nan
    sets["occluded"].first_match_rank[3] = 0
    back = from_table(to_table(sets))
    assert list(back) == ["occluded", "holistic"]
    for name, own in sets.items():
        np.testing.assert_array_equal(back[name].average_precision, own.average_precision)
        np.testing.assert_array_equal(back[name].pids, own.pids)
        assert back[name].paths == own.paths
    valid = np.delete(sets["occluded"].first_match_rank, 3)
    assert back["occluded"].mean("rank1") == pytest.approx((valid == 1).mean())
    assert back["occluded"].mean("rank10") == 1
    assert from_table(to_table({})) == {}


def test_floors_of_every_set_or_of_one():
    sets = {"occluded": found(0.5), "holistic": found(0.8)}
    checks = floor_checks(sets, {"mAP": 0.6, "holistic.rank1": 0.5})
    assert [c.name for c in checks] == [
        "floor occluded.mAP", "floor holistic.mAP", "floor holistic.rank1",
    ]  # fmt: skip
    assert [c.passed for c in checks] == [False, True, True]
    exact = sets["holistic"].mean("mAP")
    assert floor_checks(sets, {"holistic.mAP": exact})[0].passed
    (absent,) = floor_checks({"holistic": sets["holistic"]}, {"occluded.mAP": 0.1})
    assert not absent.passed and "no occluded queries" in absent.says


def test_no_worse_asks_for_the_lower_end_of_the_interval_not_for_the_mean():
    champion = found(0.6, 0.15)
    gate = Gate(no_worse={"mAP": 0.02})
    noisy = QueryFigures(
        champion.paths, champion.pids,
        champion.average_precision + np.random.default_rng(2).normal(0, 0.2, len(PERSONS)),
        champion.first_match_rank,
    )  # fmt: skip
    noisy = shifted(noisy, (champion.average_precision - noisy.average_precision).mean())
    (same,) = no_worse_checks({"occluded": champion}, {"occluded": champion}, gate)
    assert same.passed and same.value == 0
    (better,) = no_worse_checks({"occluded": shifted(champion, 0.05)}, {"occluded": champion}, gate)
    assert better.passed and better.value == pytest.approx(0.05)
    (unsure,) = no_worse_checks({"occluded": noisy}, {"occluded": champion}, gate)
    assert abs(noisy.mean("mAP") - champion.mean("mAP")) < 1e-9
    assert not unsure.passed and "perhaps more" in unsure.says
    (worse,) = no_worse_checks({"occluded": shifted(champion, -0.03)}, {"occluded": champion}, gate)
    assert not worse.passed and worse.threshold == -0.02


def test_no_worse_without_champion_with_few_persons_and_with_other_queries():
    own = {"occluded": found()}
    gate = Gate(no_worse={"mAP": 0.02})
    (first,) = no_worse_checks(own, None, gate)
    assert first.passed and "no other champion" in first.says
    few = {"occluded": found(persons=PERSONS[:40])}
    (refused,) = no_worse_checks(few, few, gate)
    assert not refused.passed and "10 persons" in refused.says and "needs 20" in refused.says
    renamed = QueryFigures(
        tuple(f"x{path}" for path in own["occluded"].paths), own["occluded"].pids,
        own["occluded"].average_precision, own["occluded"].first_match_rank,
    )  # fmt: skip
    with pytest.raises(ValueError, match="other queries"):
        no_worse_checks(own, {"occluded": renamed}, gate)


def test_masks_must_differ_between_queries_where_there_are_any():
    def spaces(**std):
        return {"occluded": {name: {"std_queries": value} for name, value in std.items()}}

    assert mask_checks(spaces(visual=0.0, bands=0.05), 0.01)[0].passed
    (dead,) = mask_checks(spaces(visual=0.2, bands=0.003), 0.01)
    assert not dead.passed and "bands" in dead.says and "dead" in dead.says
    (none,) = mask_checks(spaces(visual=0.0), 0.01)
    assert not none.passed and "mask_std: null" in none.says


def test_the_other_checks_say_what_they_were_given():
    assert files_check("a", "a").passed and not files_check("a", "b").passed
    assert "register it again" in files_check("a", None).says
    assert rolled_back_check(None).passed and rolled_back_check("").passed
    assert not rolled_back_check("2026 by somebody").passed
    assert dataset_check("abcdef", None).passed and dataset_check("abcdef", "abc").passed
    assert not dataset_check("abcdef", "abd").passed
    assert images_check(3, None).passed and not images_check(3, "a.jpg is gone").passed
    assert load_check(None, 2.0).passed and not load_check("no module").passed
    assert budget_check("size", 2.0, 2.0, "MB").passed
    assert not budget_check("size", 2.1, 2.0, "MB").passed
    own = {"occluded": found()}
    moved = {"occluded": shifted(own["occluded"], 0.004)}
    assert [c.passed for c in reproduce_checks(own, moved, 0.005)] == [True, True]
    checks = reproduce_checks(own, moved, 0.003)
    assert refused_by(checks) == ["reproduces occluded.mAP"]
