"""Promotions on a real MLflow server: what passes, what is refused, what faults leave behind."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import mlflow
import pytest

from dpmpp_core.config import load_config
from dpmpp_core.errors import ConfigError
from pipelines.journal import Journal, Lost, Move
from pipelines.registry import Registry
from pipelines.run import Options
from pipelines.tracking import environment
from tests.integration.conftest import SMALL
from tests.mlflow_server import MlflowServer
from tests.promotion_lab import Lab, Network, lab, sets_alias

DPMPP = str(Path(sys.executable).with_name("dpmpp"))
LONG = pytest.mark.long


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
        "`pytest tests/integration/test_promotion.py -m '' --promotion-table "
        f"tests/bench/results/promotion.md`; {date.today().isoformat()}. Python "
        f"{platform.python_version()}, {packages}; {found['cpus']}-core {platform.machine()} CPU. "
        "Each row is a test: a real `mlflow server` on SQLite, versions of a small trained model "
        "really measured and registered; faults are real ones of processes, files and connections. "
        "Data: 16 queries of 4 generated persons."
    )


@pytest.fixture(scope="module")
def at(
    result: dict[str, Any], runs: Path, small_demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("promotion")
    server = MlflowServer(folder / "server").start()
    options = Options(str(small_demo), overrides=SMALL, storage=str(runs), tracking_uri=server.uri)
    config = load_config("demo", SMALL)
    try:
        with lab(options, config, Path(result["model"]), server, folder) as made:
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
    tried = at.promote(name, dry_run=True)
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
    worse = at.promote(name)
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
    assert "Licence of the data: unknown" in card and "version 2: refused" in card


def test_rollback_restores_the_champion_and_what_it_took_back_stays_out(
    at: Lab, table: Table
) -> None:
    name = "back"
    at.register(name)
    at.promote(name, gate=quick(at))
    with pytest.raises(ConfigError, match="no previous champion"):
        at.rollback(name)
    table.add("`--rollback` without a previous champion", "exit 2, said in a line; nothing changed")
    at.register(name)
    second = at.promote(name, gate=quick(at))
    assert second["changed"] and second["previous"] == 1
    table.add("an equally good candidate", "version 2 is the champion, version 1 the previous one")
    assert at.aliases(name) == {"candidate": 2, "champion": 2, "previous": 1}
    assert at.promote(name)["changed"] is False
    table.add("the champion promoted again", "said so; nothing changed")

    assert at.rollback(name)["changed"]
    assert at.aliases(name) == {"candidate": 2, "champion": 1, "previous": 2}
    table.add("`--rollback`", "version 1 is the champion again, version 2 the previous one")
    again = at.promote(name, gate=quick(at))
    assert again["refused_by"] == ["rolled back"]
    assert at.aliases(name)["champion"] == 1
    table.add("promotion of what was taken back", why(again))
    assert at.tickets(name) == ["done"] * 3


def test_of_two_promotions_at_once_one_wins_and_the_other_says_so(at: Lab, table: Table) -> None:
    name = "pair"
    for _ in range(3):
        at.register(name)
    at.promote(name, version=1, gate=quick(at))
    together = [dpmpp(at, name, "--version", str(version)) for version in (2, 3)]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in together]
    codes = [code for _, _, code in ended]
    champion = at.aliases(name)["champion"]
    assert champion in (2, 3) and at.aliases(name)["previous"] in (1, 5 - champion)
    won = codes[champion - 2]
    assert won == 0, ended
    other = ended[3 - champion]
    # The slower one may begin when the faster one has ended, and then beats it fairly.
    assert other[2] == 3 or at.aliases(name)["previous"] == 5 - champion, other
    assert "open" not in at.tickets(name)


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
                Journal(Registry(at.server.uri, name)).move(move)
                ended.append("won")
            except Lost as error:
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
    assert reached.wait(120), process[0].communicate()
    process[0].kill()
    process[0].communicate(timeout=30)
    assert process[0].returncode == -signal.SIGKILL


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
        "a promotion seconds after another one was killed", "waits: " + short(hasty["refused"])
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
