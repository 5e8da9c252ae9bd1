"""Promotions on a real MLflow server: what passes, what is refused, what faults leave behind."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

import dpmpp_core
from dpmpp_core.errors import ConfigError, UserError
from pipelines.registry.client import FILES, Registry, hash_files
from pipelines.registry.promotion_log import Move, PromotionConflictError, PromotionLog
from pipelines.runtime.environment import environment
from pipelines.runtime.mlflow_checks import TrackingError
from pipelines.workflows.session import open_session, prepare_data
from tests.support.cli import DPMPP, TIMEOUT_S, assert_mistake, invoke_dpmpp
from tests.support.mlflow_server import MlflowServer
from tests.support.promotion_lab import Lab, Network, deaden_masks, lab, sets_alias

LONG = pytest.mark.long
# Such as postgresql://user:password@host/name, empty: what decides who wins is the database.
DATABASE = os.environ.get("DPMPP_TEST_DATABASE")
DATABASE_KIND = DATABASE.split(":")[0] if DATABASE else "SQLite"


@dataclass
class Table:
    """Rows of the report."""

    rows: list[str] = field(default_factory=list)

    def add(self, situation: str, happened: str) -> None:
        self.rows.append(f"| {len(self.rows) + 1} | {situation} | {happened} |")


@pytest.fixture(scope="module")
def table(pytestconfig: pytest.Config) -> Iterator[Table]:
    made = Table()
    yield made
    path = pytestconfig.getoption("--promotion-table")
    if path and made.rows:
        head = ["| | situation | what happened |", "|---:|---|---|"]
        Path(path).write_text("\n".join(["# Promotions", "", said(), "", *head, *made.rows, ""]))


def said() -> str:
    found = environment()
    packages = ", ".join(f"{name} {found['packages'][name]}" for name in ("mlflow", "torch", "ray"))
    return (
        "`pytest tests/system/test_promotion.py -m '' --promotion-table "
        f"tests/bench/results/promotion.md`; {date.today().isoformat()}. Python "
        f"{platform.python_version()}, {packages}; {found['cpus']}-core {platform.machine()} CPU. "
        f"Each row is of a test: a real `mlflow server` on {DATABASE_KIND}; versions of the "
        "package's small model, not trained further, really measured and registered; faults are of "
        "real processes, files and connections. "
        "Data: 16 queries of 4 generated persons."
    )


@pytest.fixture(scope="module")
def at(cluster: None, small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("promotion")
    server = MlflowServer(folder / "server", database=DATABASE).start()
    try:
        with pytest.MonkeyPatch.context() as patch, lab(small_demo, server, folder) as made:
            # A busy machine's server may take longer than a promotion waits by default.
            patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
            yield made
    finally:
        server.stop()


@pytest.fixture
def network(at: Lab) -> Iterator[Network]:
    made = Network(at.server)
    yield made
    made.close()


def dpmpp(at: Lab, name: str, *arguments: str, uri: str | None = None) -> subprocess.Popen[str]:
    command = [
        DPMPP, "promote", name, "--gate", at.gate(reproduce=None, latency_ms=None),
        "--tracking-uri", uri or at.server.uri, "--json", *arguments,
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=at.folder
    )


def quick(at: Lab, **changes: Any) -> str:
    """A gate that trusts the record: nothing is loaded."""
    return at.gate(reproduce=None, latency_ms=None, **changes)


def why(result: dict[str, Any]) -> str:
    return "refused by: " + ", ".join(result["refused_by"])


def test_the_first_candidate_becomes_champion_a_worse_one_does_not(at: Lab, table: Table) -> None:
    name = "first"
    assert at.register(name) == 1
    before = at.aliases(name)
    tried = at.promote(name, dry_run=True, gate=quick(at))
    assert not tried["refused_by"] and not tried["changed"]
    assert at.aliases(name) == before == {"candidate": 1} and at.tickets(name) == []
    assert "dpmpp.gate" not in at.client.get_model_version(name, "1").tags
    table.add("`--dry-run` of the first candidate", "would pass; aliases, tags, runs untouched")

    first = at.promote(name)
    assert first["changed"] and first["champion"] == 1 and first["previous"] is None
    names = {check["name"] for check in first["checks"]}
    assert {"files", "images", "loads", "latency", "size", "mask occluded"} <= names
    assert {"reproduces holistic.mAP", "no worse occluded.mAP", "floor holistic.mAP"} <= names
    assert at.aliases(name) == {"candidate": 1, "champion": 1}
    table.add("first promotion, no champion yet", "version 1 is the champion; no previous one")

    assert at.register(name, at.worse()) == 2
    worse = at.promote(name, gate=quick(at))
    assert "no worse occluded.mAP" in worse["refused_by"] and not worse["changed"]
    assert at.aliases(name) == {"candidate": 2, "champion": 1}
    check = next(c for c in worse["checks"] if c["name"] == "no worse occluded.mAP")
    table.add("noise on the encoder's weights", f"{why(worse)} ({check['says']})")

    tags = at.client.get_model_version(name, "2").tags
    assert tags["dpmpp.gate"] == "refused" and "no worse" in tags["dpmpp.gate.refused_by"]
    stored = json.loads(mlflow.artifacts.load_text(f"runs:/{tags['dpmpp.gate.run']}/verdict.json"))
    assert stored["checks"] == json.loads(json.dumps(worse["checks"]))
    page = mlflow.artifacts.load_text(f"runs:/{tags['dpmpp.gate.run']}/verdict.md")
    assert "| no worse occluded.mAP | **failed** |" in page
    card = mlflow.artifacts.load_text(f"runs:/{tags['dpmpp.gate.run']}/model_card.md")
    assert "Licence of the data: generated by this package" in card and "version 2: refused" in card
    described = at.client.get_model_version(name, "2").description
    assert "95 % intervals over persons" in described and "version 2: refused" in described


def test_rollback_restores_the_champion_and_what_it_took_back_stays_out(
    at: Lab, table: Table
) -> None:
    name = "back"
    at.register(name)
    at.promote(name, gate=quick(at))
    with pytest.raises(ConfigError, match="no previous champion"):
        at.roll_back(name)
    table.add("`--rollback` without a previous champion", "exit 2, said in a line; nothing changed")
    at.register(name)
    second = at.promote(name, gate=quick(at))
    assert second["changed"] and second["previous"] == 1
    table.add("an equally good candidate", "version 2 is the champion, version 1 the previous one")
    assert at.aliases(name) == {"candidate": 2, "champion": 2, "previous": 1}
    assert at.promote(name)["changed"] is False
    table.add("the champion promoted again", "said so; nothing changed")

    assert at.roll_back(name)["changed"]
    assert at.aliases(name) == {"candidate": 2, "champion": 1, "previous": 2}
    table.add("`--rollback`", "version 1 is the champion again, version 2 the previous one")
    again = at.promote(name, gate=quick(at))
    assert again["refused_by"] == ["rolled back"]
    assert at.aliases(name)["champion"] == 1
    table.add("promotion of what was taken back", why(again))
    assert at.tickets(name) == ["done"] * 3


@LONG
def test_rollback_works_where_the_champion_was_deleted(at: Lab, table: Table) -> None:
    name = "deleted"
    for _ in range(2):
        at.register(name)
        at.promote(name, gate=quick(at))
    at.client.delete_model_version(name, "2")
    assert at.aliases(name) == {"previous": 1}
    assert at.roll_back(name)["changed"]
    assert at.aliases(name)["champion"] == 1
    table.add("`--rollback` after the champion was deleted", "version 1 is the champion")


@LONG
def test_of_two_promotions_at_once_one_wins_and_the_other_says_so(at: Lab, table: Table) -> None:
    name = "pair"
    for _ in range(3):
        at.register(name)
    at.promote(name, version=1, gate=quick(at))
    together = [dpmpp(at, name, "--version", str(version)) for version in (2, 3)]
    ended = [(*process.communicate(timeout=TIMEOUT_S), process.returncode) for process in together]
    codes = [code for _, _, code in ended]
    champion = at.aliases(name)["champion"]
    assert champion in (2, 3) and at.aliases(name)["previous"] in (1, 5 - champion)
    won = codes[champion - 2]
    assert won == 0, ended
    other = ended[3 - champion]
    # The slower one may begin when the faster one has ended, and then beats it fairly.
    assert other[2] == 3 or at.aliases(name)["previous"] == 5 - champion, other
    assert "open" not in at.tickets(name)
    happened = f"exit codes {sorted(codes)}; one champion, one previous, no open ticket"
    table.add("two `dpmpp promote` at once", happened)


@LONG
def test_of_many_movers_one_wins_whatever_their_timing(at: Lab, table: Table) -> None:
    """The journal alone, eight at a time, five rounds: what the gate takes away is the timing."""
    name = "many"
    for _ in range(2):
        at.register(name)
    champion, previous, lost = None, None, 0
    for round_ in range(5):
        to = 1 + round_ % 2
        move = Move("promote", champion, previous, to)
        ended: list[str] = []

        def go(move: Move = move, ended: list[str] = ended) -> None:
            try:
                PromotionLog(Registry(at.server.uri, name)).apply(move)
                ended.append("won")
            except PromotionConflictError as error:
                ended.append(str(error))

        threads = [threading.Thread(target=go) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ended.count("won") == 1, ended
        assert all("another promotion" in said for said in ended if said != "won")
        lost += len(ended) - 1
        champion, previous = to, champion
        expected = {"candidate": 2, "champion": to}
        assert at.aliases(name) == expected | ({"previous": previous} if previous else {})
    assert "open" not in at.tickets(name)
    table.add("8 promotions at once, 5 times", f"each time one won; the other {lost} said so")


def killed_at(at: Lab, network: Network, name: str, alias: str, met: str | None) -> None:
    """Promote in a process of its own, which dies as it points the alias."""
    process: list[subprocess.Popen[str]] = []
    reached = threading.Event()
    points = sets_alias(alias)

    def fault(method: str, path: str, body: dict[str, Any]) -> str | None:
        if not points(method, path, body):
            return None
        if met == "cut":  # before the server hears of it
            process[0].kill()
        reached.set()
        return met

    network.fault = fault
    process.append(dpmpp(at, name, uri=network.uri))
    assert reached.wait(TIMEOUT_S), process[0].communicate()
    process[0].kill()
    process[0].communicate(timeout=TIMEOUT_S)
    assert process[0].returncode == -signal.SIGKILL


@LONG
def test_a_promoter_killed_between_two_aliases_never_was(
    at: Lab, network: Network, table: Table
) -> None:
    name = "killed"
    for _ in range(3):
        at.register(name)
    for version in (1, 2):
        at.promote(name, version=version, gate=quick(at))
    killed_at(at, network, name, "champion", "cut")
    assert at.aliases(name) == {"candidate": 3, "champion": 2, "previous": 2}
    assert at.tickets(name)[-1] == "open"
    hasty = at.promote(name, gate=quick(at))
    assert (
        "another promotion is under way" in hasty["refused"]
        and "promote again in" in hasty["refused"]
    )
    table.add(
        "a promotion seconds after another one was killed", "exit 3: " + short(hasty["refused"])
    )
    time.sleep(1.1)
    with pytest.raises(ConfigError, match="no version 9"):
        at.promote(name, version=9, gate=quick(at), lease=1.0)  # repairs before it asks for more
    assert at.aliases(name) == {"candidate": 3, "champion": 2, "previous": 1}
    table.add(
        "killed between `previous` and `champion`",
        "one champion all the time; the next promotion put `previous` back",
    )
    assert at.promote(name, gate=quick(at))["changed"]
    assert at.aliases(name) == {"candidate": 3, "champion": 3, "previous": 2}


def short(text: str) -> str:
    return text.partition(". ")[0].partition(" by ")[0]


@LONG
def test_a_promoter_killed_after_the_champion_was_moved_has_promoted(
    at: Lab, network: Network, table: Table
) -> None:
    name = "late"
    for _ in range(2):
        at.register(name)
    at.promote(name, version=1, gate=quick(at))
    killed_at(at, network, name, "champion", "late")
    assert at.aliases(name) == {"candidate": 2, "champion": 2, "previous": 1}
    assert at.tickets(name)[-1] == "open"
    time.sleep(1.1)
    assert at.promote(name, gate=quick(at), lease=1.0)["changed"] is False
    assert at.tickets(name) == ["done"] * 3
    assert at.client.get_model_version(name, "2").tags["dpmpp.promoted"]
    table.add(
        "killed after `champion` was moved", "the next promotion closed its ticket: it was done"
    )


@LONG
def test_a_server_lost_between_two_aliases_is_repaired_by_the_next_promotion(
    at: Lab, network: Network, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    name = "lost"
    for _ in range(2):
        at.register(name)
    at.promote(name, version=1, gate=quick(at))
    points, away = sets_alias("champion"), threading.Event()

    def fault(*asked: Any) -> str | None:
        if points(*asked):
            away.set()
        return "cut" if away.is_set() else None

    network.fault = fault
    with pytest.raises(TrackingError, match="MLflow at"):
        at.promote(name, gate=quick(at), uri=network.uri)
    assert at.aliases(name) == {"candidate": 2, "champion": 1, "previous": 1}
    with pytest.raises(TrackingError, match="MLflow at"):
        at.promote(name, gate=quick(at), uri=network.uri)
    table.add("registry out of reach from the start", "exit 2, said in a line; nothing changed")
    time.sleep(1.1)
    assert at.promote(name, gate=quick(at), lease=1.0)["changed"]
    assert at.aliases(name) == {"candidate": 2, "champion": 2, "previous": 1}
    assert at.tickets(name) == ["done", "undone", "done", "done"]
    table.add(
        "registry lost between `previous` and `champion`",
        "exit 2; the old champion stayed; the next promotion repaired and promoted",
    )


def test_an_answer_that_is_lost_makes_no_rival_of_oneself(at: Lab, network: Network) -> None:
    """The ticket was made, the answer lost, and MLflow's client asked for it a second time."""
    name = "twice"
    at.register(name)
    lost = []

    def fault(method: str, path: str, body: dict[str, Any]) -> str | None:
        ticket = path.endswith("/model-versions/create") and method == "POST"
        if ticket and not lost:
            lost.append(path)
            return "late"
        return None

    network.fault = fault
    assert at.promote(name, gate=quick(at), uri=network.uri)["changed"]
    assert lost and at.tickets(name) == ["undone", "done"]


@LONG
def test_a_champion_moved_by_hand_while_judging_is_not_overruled(at: Lab, table: Table) -> None:
    name = "hand"
    for _ in range(3):
        at.register(name)
    at.promote(name, version=1, gate=quick(at))
    at.client.set_registered_model_alias(name, "champion", "2")
    journal = PromotionLog(Registry(at.server.uri, name))
    with pytest.raises(
        PromotionConflictError, match="the champion is version 2 now, it was version 1"
    ):
        journal.apply(Move("promote", 1, None, 3))
    assert at.aliases(name)["champion"] == 2 and at.tickets(name) == ["done", "lost"]
    table.add("champion moved by hand after the gate", "exit 3: judged against another champion")


@LONG
@pytest.mark.parametrize(
    ("situation", "changes", "refused"),
    [
        ("a floor above what it reaches", {"floors": {"occluded.mAP": 0.99}}, "floor occluded.mAP"),
        ("gate of another data set", {"dataset": "00000000"}, "data set"),
        ("4 persons, the gate wants 20", {"identities": 20}, "no worse occluded.mAP"),
        ("larger than its budget", {"size_mb": 1.0}, "size"),
    ],
)
def test_each_bound_refuses_by_its_own_name(
    at: Lab, table: Table, situation: str, changes: dict[str, Any], refused: str
) -> None:
    name = "bounds"
    if not at.known(name):
        at.register(name)
        at.promote(name, gate=quick(at))
        at.register(name)
    answer = at.promote(name, gate=quick(at, **changes))
    assert answer["refused_by"][0] == refused and not answer["changed"]
    assert {r.split()[0] for r in answer["refused_by"]} == {refused.split()[0]}
    assert at.aliases(name)["champion"] == 1
    table.add(situation, why(answer))


@LONG
def test_slower_than_its_budget(at: Lab, table: Table) -> None:
    at.register("slow")
    answer = at.promote("slow", gate=at.gate(latency_ms=0.001))
    assert answer["refused_by"] == ["latency"]
    table.add("slower than its budget", why(answer))


@LONG
def test_a_dead_mask_is_refused(at: Lab, table: Table) -> None:
    at.register("dead", at.changed("dead", deaden_masks))
    answer = at.promote("dead", gate=quick(at))
    assert answer["refused_by"] == ["mask occluded", "mask holistic"]
    table.add("the same mask for all queries", why(answer))


@LONG
def test_holistic_queries_count_for_themselves(at: Lab, table: Table) -> None:
    """Good on occluded queries is no excuse: the gate here looks at the other ones only."""
    name = "holistic"
    at.register(name)
    at.promote(name, gate=quick(at))
    at.register(name, at.worse())
    answer = at.promote(name, gate=quick(at, floors={}, no_worse={"holistic.mAP": 0.02}))
    assert answer["refused_by"] == ["no worse holistic.mAP"]
    table.add("worse on holistic queries", why(answer))


@LONG
def test_files_that_were_tampered_with_are_refused_unread(at: Lab, table: Table) -> None:
    name = "tampered"
    for _ in range(3):
        at.register(name)
    (weights,) = at.stored(name, 1).rglob("model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    answer = at.promote(name, version=1)
    assert answer["refused_by"] == ["files"] and "loads" not in str(answer["checks"])
    table.add("one bit of the stored weights changed", why(answer) + "; nothing of it was loaded")

    facts = at.stored(name, 2) / "artifacts" / "record" / "metrics.json"
    facts.write_text(facts.read_text().replace("0.", "0.9"))
    answer = at.promote(name, version=2)
    assert answer["refused_by"] == ["files"]
    table.add("recorded figures raised in the store", why(answer))

    at.promote(name, version=3, gate=quick(at))
    at.register(name)
    (at.stored(name, 3) / "code" / "dpmpp_core" / "__init__.py").write_text("raise SystemExit\n")
    with pytest.raises(UserError, match="files of the champion, version 3, are not those"):
        at.promote(name)
    table.add("the champion's own files changed", "exit 2: nothing can be compared with it")


@LONG
def test_a_version_that_was_not_registered_by_this_program_is_refused(
    at: Lab, table: Table
) -> None:
    name = "bare"
    at.register(name)
    at.client.delete_model_version_tag(name, "1", FILES)
    answer = at.promote(name)
    assert answer["refused_by"] == ["files"]
    assert "register it again" in answer["checks"][0]["says"]
    table.add("registered without hashes and record", why(answer))


def retag(at: Lab, name: str, version: int) -> None:
    """Who may write the registry makes its hash fit the changed files."""
    digest = hash_files(at.stored(name, version))
    at.client.set_model_version_tag(name, str(version), FILES, digest)


@LONG
def test_figures_that_the_model_does_not_reach_are_found_out(at: Lab, table: Table) -> None:
    """Of the worse model, with the record of the better one and a hash that fits."""
    name = "boast"
    at.register(name)
    at.register(name, at.worse())
    record = Path("artifacts") / "record"
    shutil.copytree(at.stored(name, 1) / record, at.stored(name, 2) / record, dirs_exist_ok=True)
    retag(at, name, 2)
    answer = at.promote(name, version=2)
    assert "reproduces occluded.mAP" in answer["refused_by"]
    assert all(refused.startswith("reproduces") for refused in answer["refused_by"])
    table.add("better figures recorded than the model reaches, hashes made to fit", why(answer))


@LONG
def test_a_model_that_does_not_load_elsewhere_is_refused(at: Lab, table: Table) -> None:
    name = "broken"
    at.register(name)
    package = at.stored(name, 1) / "code" / "dpmpp_core"
    (package / "retrieval" / "__init__.py").write_text("raise ImportError('half a package')\n")
    retag(at, name, 1)
    answer = at.promote(name)
    assert answer["refused_by"] == ["loads"]
    assert "half a package" in str(answer["checks"])
    table.add("its code does not import in a new process", why(answer))

    at.register(name)
    shutil.rmtree(at.stored(name, 2) / "code" / "dpmpp_core")
    retag(at, name, 2)
    answer = at.promote(name, version=2)
    assert answer["refused_by"] == ["loads"]
    assert "its own code" in str(answer["checks"])
    table.add("it needs code that did not come with it", why(answer))


@LONG
def test_other_images_are_noticed_and_the_champion_measured_on_them(
    at: Lab, table: Table, small_demo: Path, tmp_path: Path
) -> None:
    name = "moved"
    data = tmp_path / "data"
    shutil.copytree(small_demo, data)
    options = replace(at.options, data=str(data))
    at.register(name)
    at.promote(name, gate=quick(at))
    gone = next((data / "bounding_box_test").glob("*.jpg"))
    gone.unlink()
    with open_session(options, [at.run.config]) as (other, source, _):
        other = replace(other, tracking=at.run.tracking)
        prepared = prepare_data(other, source)
        at.register(name, run=other, prepared=prepared)
    told = at.promote(name, records_only=True, dry_run=True)
    assert "records do not compare" in told["notes"][0] and not told["refused_by"]
    assert not any(check["name"].startswith("no worse") for check in told["checks"])

    changed = next((data / "query").glob("*.jpg"))
    kept = changed.read_bytes()
    changed.write_bytes(kept + b"\0")
    answer = at.promote(name, gate=at.gate())
    assert answer["refused_by"] == ["images"] and changed.name in str(answer["checks"])
    table.add("an image changed since the evaluation", why(answer) + ", which names the image")
    changed.write_bytes(kept)

    where = tmp_path / "elsewhere"
    data.rename(where)
    answer = at.promote(name, gate=at.gate())
    assert answer["refused_by"] == ["images"]
    table.add("the images are not where they were", why(answer))

    answer = at.promote(name, data=str(where))
    assert answer["changed"] and "measured again on these" in answer["notes"][0]
    assert [c["passed"] for c in answer["checks"] if c["name"].startswith("no worse")] == [True] * 2
    table.add(
        "other evaluation images than the champion's; `--data` says where they are",
        "the champion was measured anew on them and compared; promoted",
    )


@LONG
def test_mistakes_are_said_in_one_line(at: Lab, table: Table, tmp_path: Path) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text("flors: {mAP: 0.5}\n")
    at.register("mistake")
    before = at.aliases("mistake")
    for arguments, says in (
        (["mistake", "--gate", str(gate)], "unknown key 'flors'; did you mean 'floors'?"),
        (["mistke"], "did you mean 'mistake'?"),
        (["mistake", "--version", "7"], "mistake has no version 7"),
        (["mistake", "--version", "0"], "mistake has no version 0"),
        (["it's", "--version", "1"], "cannot be the name of a registered model"),
    ):
        done = invoke_dpmpp("promote", *arguments, "--tracking-uri", at.server.uri)
        assert_mistake(done, says)
        table.add(f"`dpmpp promote {arguments[0]} ...`: {says.partition(';')[0]}", "exit 2")
    assert at.aliases("mistake") == before and at.tickets("mistake") == []


@LONG
def test_a_refusal_exits_3_with_a_line_and_the_result(at: Lab, table: Table) -> None:
    at.register("exits")
    process = dpmpp(at, "exits", "--gate", at.gate(reproduce=None, latency_ms=None, size_mb=1.0))
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 3
    assert err.strip().splitlines()[-1] == ("dpmpp: not promoted: exits version 1 refused by: size")
    assert json.loads(out.splitlines()[-1])["refused_by"] == ["size"]
    table.add("what a scheduler sees of a refusal", "exit 3, a line on stderr, JSON on stdout")


@LONG
def test_the_champion_is_used_with_the_registry_alone(at: Lab, small_demo: Path) -> None:
    at.register("used")
    at.promote("used")
    mlflow.set_tracking_uri(at.server.uri)
    model = mlflow.pyfunc.load_model("models:/used@champion")
    paths = sorted((small_demo / "query").glob("*.jpg"))[:3]
    found = model.predict(pd.DataFrame({"image": [path.read_bytes() for path in paths]}))
    direct = dpmpp_core.load_model(at.model).embed(paths)
    for space, features in direct.features.items():
        np.testing.assert_allclose(np.stack(found[f"feature_{space}"]), features, atol=1e-5)
