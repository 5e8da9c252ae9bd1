"""Jobs of an overlay on a running Ray cluster, through Ray's Jobs API."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpmpp_core.errors import ConfigError
from dpmpp_core.redaction import one_line
from pipelines.deploy.entrypoint import (
    format_driver_command,
    format_entrypoint,
    split_entrypoint,
)
from pipelines.deploy.render import Object, get_object
from pipelines.deploy.rules import check_operator_rules

ENDED_STATES = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Owner:
    """A Job of Kubernetes for which a RayJob is submitted, and with which it is removed."""

    name: str
    uid: str

    @classmethod
    def parse(cls, text: str) -> Owner:
        """Read NAME/UID; raise ConfigError if it is something else."""
        name, _, uid = text.partition("/")
        if not name or not uid:
            raise ConfigError(f"--owner {text!r} is not NAME/UID of a Job")
        return cls(name, uid)


def build_job(
    objects: Sequence[Object], job: str, overrides: Sequence[str], owner: Owner | None = None
) -> Object:
    """Return the RayJob of a pipeline, ready to start: named, not suspended, with its overrides.

    The name holds a hash of what is run, so the same submission twice is one job.

    Args:
        objects: those of the overlay.
        job: `train` for the RayJob `dpmpp-train`.
        overrides: configuration values, `section.key=value`, and options, appended to its command.
        owner: the Job that it belongs to; each owner has a RayJob of its own.

    Raises:
        ConfigError: no such job, or an override that no quoting brings to the job.
    """
    rayjob = json.loads(json.dumps(get_object(list(objects), "RayJob", f"dpmpp-{job}")))
    spec = rayjob["spec"]
    spec["entrypoint"] = format_entrypoint([*split_entrypoint(spec["entrypoint"]), *overrides])
    spec.pop("suspend", None)
    identity = json.dumps([spec, owner.uid] if owner else spec, sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()
    rayjob["metadata"] = {
        "name": f"dpmpp-{job}-{digest[:8]}",
        "namespace": rayjob["metadata"].get("namespace", "default"),
        "labels": {"app.kubernetes.io/name": "dpmpp", "dpmpp/job": job},
    }
    if owner:
        reference = {"apiVersion": "batch/v1", "kind": "Job", "name": owner.name, "uid": owner.uid}
        rayjob["metadata"]["ownerReferences"] = [reference]
    for path, sentence in check_operator_rules(rayjob):
        raise ConfigError(f"{job}: {path}: {sentence}")
    return rayjob


class RayCluster:
    """The Jobs API of a running cluster.

    Args:
        address: `http://head:8265`. A token is taken from RAY_AUTH_TOKEN (RAY_AUTH_MODE=token).

    Raises:
        ConfigError: no response, another version of Ray, or no token.
    """

    def __init__(self, address: str) -> None:
        from ray.job_submission import JobSubmissionClient

        try:
            self._client = JobSubmissionClient(address)
        except Exception as error:  # Ray passes errors of its HTTP library on
            raise ConfigError(f"--address {address}: {_explain_failure(error)}") from None

    def submit(self, job: Object) -> dict[str, Any]:
        """Start a job, unless it was started before."""
        name, spec = job["metadata"]["name"], job["spec"]
        known = {submission.submission_id for submission in self._client.list_jobs()}
        if name not in known:
            self._client.submit_job(
                entrypoint=format_driver_command(spec["entrypoint"]),
                submission_id=name,
                entrypoint_resources=json.loads(spec.get("entrypointResources") or "{}"),
                metadata={"job": job["metadata"]["labels"]["dpmpp/job"]},
            )
        return self.status(name) | {"found": name in known}

    def status(self, name: str) -> dict[str, Any]:
        """Return `job`, `status`, `message`, times (seconds since 1970), `entrypoint`, its node."""
        info = self._info(name)
        return {
            "job": name,
            "status": str(info.status.value),
            "message": one_line(info.message or ""),
            "started": (info.start_time or 0) / 1000,
            "ended": info.end_time / 1000 if info.end_time else None,
            "entrypoint": info.entrypoint,
            "node": info.driver_node_id,
        }

    def _info(self, name: str) -> Any:
        try:
            return self._client.get_job_info(name)
        except RuntimeError:
            names = [str(submission.submission_id) for submission in self._client.list_jobs()]
            raise ConfigError(
                f"no job {name!r} on the cluster (there are {', '.join(sorted(names)) or 'none'})"
            ) from None

    def list(self) -> list[dict[str, Any]]:
        """Return every job, as `status`."""
        names = [submission.submission_id for submission in self._client.list_jobs()]
        return [self.status(str(name)) for name in names if name]

    def logs(self, name: str, follow: bool, write: Any) -> None:
        """Write what the job's program printed; with `follow` until it ends."""
        self._info(name)
        if not follow:
            write(self._client.get_job_logs(name))
            return

        async def tail() -> None:
            async for lines in self._client.tail_job_logs(name):
                write(lines)

        asyncio.run(tail())

    def stop(self, name: str) -> dict[str, Any]:
        """Stop the job's program, which writes a checkpoint first."""
        self._info(name)
        self._client.stop_job(name)
        return self.status(name)


def _explain_failure(error: Exception) -> str:
    text = one_line(str(error))[:300]
    if "401" in text or "auth" in text.lower():
        return (
            "the cluster wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
            f"(kubectl get secret; see infra/README.md): {text}"
        )
    return f"no Ray dashboard answers: {text}"
