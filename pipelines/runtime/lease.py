"""One holder of an object's name on S3 at a time: a lease that its holder renews (ours).

S3 writes an object only if it is absent (`If-None-Match`) or unchanged (`If-Match`), in one step.
The age of a lease is measured by the server's clock alone.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from dpmpp_core.data.files import s3_endpoint
from pipelines.runtime.environment import describe_owner

LEASE_SECONDS = 60.0  # without renewal, after which the holder counts as dead
RENEWALS = 6  # per lease, so that a few may fail
WAIT_SECONDS = 2.0
REFUSED, ABSENT, UNSUPPORTED = "PreconditionFailed", ("NoSuchKey", "404"), "NotImplemented"

log = logging.getLogger(__name__)


@contextmanager
def hold_lease(bucket: str, key: str, seconds: float = LEASE_SECONDS) -> Iterator[None]:
    """Wait until nobody holds the object, and hold it inside the block.

    A server without conditional writes has no leases: the block runs at once, with a warning.

    Args:
        bucket: name of the bucket.
        key: of the object; its content names the holder.
        seconds: without renewal, after which a holder counts as dead.
    """
    lease = _Lease(bucket, key, seconds)
    if not lease.acquire():
        log.warning("s3://%s cannot be locked: start one run in it at a time", bucket)
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=lease.keep, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        lease.release()


class _Lease:
    """The lease of one process; `etag` is that of the object as this process wrote it."""

    def __init__(self, bucket: str, key: str, seconds: float) -> None:
        limits = Config(connect_timeout=10, read_timeout=10, retries={"max_attempts": 3})
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        self._client: Any = boto3.client(
            "s3", endpoint_url=s3_endpoint() or None, region_name=region, config=limits
        )
        self._place = {"Bucket": bucket, "Key": key}
        self._seconds, self._etag = seconds, ""

    def acquire(self) -> bool:
        """Wait for the lease; return whether the server has leases."""
        said = False
        while True:
            try:
                if self._write(IfNoneMatch="*"):
                    return True
                if self._take_over_dead():
                    return True
            except ClientError as error:
                if error.response["Error"]["Code"] == UNSUPPORTED:
                    return False
                raise
            if not said:
                log.info("%s is under way in another process: waiting", self._place["Key"])
                said = True
            time.sleep(min(WAIT_SECONDS, self._seconds / RENEWALS))

    def _write(self, **condition: str) -> bool:
        """Write the object under a condition; return whether it held."""
        body = f"{describe_owner()} {uuid.uuid4().hex}".encode()  # new content: a new tag
        try:
            self._etag = self._client.put_object(**self._place, Body=body, **condition)["ETag"]
        except ClientError as error:
            if error.response["Error"]["Code"] not in (REFUSED, *ABSENT):
                raise
            return False
        return True

    def _take_over_dead(self) -> bool:
        try:
            found = self._client.head_object(**self._place)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ABSENT:
                raise
            return False  # released meanwhile
        now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
        age = (now - found["LastModified"]).total_seconds()
        return age > self._seconds and self._write(IfMatch=found["ETag"])

    def keep(self, stop: threading.Event) -> None:
        """Renew the lease until `stop`."""
        while not stop.wait(self._seconds / RENEWALS):
            try:
                if not self._write(IfMatch=self._etag):
                    log.warning("%s was taken by another process", self._place["Key"])
                    self._etag = ""
                    return
            except (ClientError, BotoCoreError) as error:
                log.warning("%s is not renewed: %s", self._place["Key"], error)

    def release(self) -> None:
        """Give the lease back, unless another process has taken it; one that fails runs out."""
        if not self._etag:
            return
        try:
            self._client.delete_object(**self._place)
        except (ClientError, BotoCoreError) as error:
            log.warning("%s is not released: %s", self._place["Key"], error)
