"""Retries while a storage is out of reach: an outage of seconds must not end work of hours."""

from __future__ import annotations

import errno
import logging
import re

import tenacity

log = logging.getLogger(__name__)

PATIENCE = 180.0  # seconds after which an outage is an error
_NETWORK = {
    errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.ETIMEDOUT,
}  # fmt: skip
# Messages of the S3 client about a server that is unreachable, failing or overloaded.
_OUTAGE = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|TIMEOUT"
    r"|curlCode|HTTP status 5\d\d"
)


def is_outage(error: BaseException) -> bool:
    """Return whether an error may pass by itself: of the network or server, not the request."""
    if not isinstance(error, OSError):
        return False
    return error.errno in _NETWORK if error.errno else bool(_OUTAGE.search(str(error)))


def _log_first_retry(state: tenacity.RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome is not None:
        log.warning("storage does not answer, trying again: %s", state.outcome.exception())


patient = tenacity.retry(
    retry=tenacity.retry_if_exception(is_outage),
    wait=tenacity.wait_exponential(multiplier=0.5, max=10),
    stop=tenacity.stop_after_delay(PATIENCE),
    before_sleep=_log_first_retry,
    reraise=True,
)
"""Calls a function again while `is_outage`, for at most PATIENCE; it must be idempotent."""
