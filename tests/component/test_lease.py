"""Leases on a real S3 server: one holder at a time, and none after its death."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator

import pytest

from pipelines.runtime.lease import hold_lease
from pipelines.runtime.storage import Storage
from tests.support.s3_server import S3Server

SECONDS = 3.0
PLACE = "results", "runs/.locks/stage.lock"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    made = S3Server(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        made.start()
        yield made
        made.stop()


def hold_for_ever(acquired) -> None:
    with hold_lease(*PLACE, SECONDS):
        acquired.set()
        time.sleep(3600)


@pytest.mark.long
def test_a_second_holder_waits_for_the_first_and_outlives_a_killed_one(server: S3Server) -> None:
    spawn = multiprocessing.get_context("spawn")
    acquired = spawn.Event()
    first = spawn.Process(target=hold_for_ever, args=(acquired,), daemon=True)
    first.start()
    assert acquired.wait(300)
    waiting = spawn.Event()
    second = spawn.Process(target=hold_for_ever, args=(waiting,), daemon=True)
    second.start()
    assert not waiting.wait(3 * SECONDS)  # the first one renews its lease
    first.kill()
    assert waiting.wait(300)
    second.kill()


def test_a_storage_on_s3_is_held_and_given_back(server: S3Server) -> None:
    storage = Storage("s3://results/other")
    for _ in range(2):
        with storage.hold("stages/metric-1"):
            assert storage.read(".locks/stages-metric-1.lock")
        assert storage.read(".locks/stages-metric-1.lock") is None
