"""Which faults are waited for."""

from __future__ import annotations

import errno

import pytest

from dpmpp_core.data import patience
from dpmpp_core.data.patience import is_outage, patient


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (
            OSError("When reading: AWS Error NETWORK_CONNECTION during HeadObject: curlCode: 7"),
            True,
        ),
        (OSError("AWS Error SLOW_DOWN during PutObject operation: reduce your request rate"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 503) during PutObject operation"), True),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), True),
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation"), False),
        (OSError("AWS Error NO_SUCH_BUCKET during PutObject operation"), False),
        (FileNotFoundError(errno.ENOENT, "not there"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ValueError("NETWORK_CONNECTION"), False),
    ],
)
def test_an_outage_is_told_from_a_fault_that_stays(error: Exception, passes: bool) -> None:
    assert is_outage(error) is passes


def test_it_tries_again_until_the_outage_is_over(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    @patient
    def read() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        return "content"

    assert read() == "content"
    assert len([r for r in caplog.records if "trying again" in r.message]) == 1


def test_a_fault_that_stays_is_raised_at_once() -> None:
    calls = []

    @patient
    def read() -> None:
        calls.append(1)
        raise FileNotFoundError(errno.ENOENT, "not there")

    with pytest.raises(FileNotFoundError):
        read()
    assert len(calls) == 1
    assert patience.PATIENCE > 60, "a server that starts again takes half a minute"
