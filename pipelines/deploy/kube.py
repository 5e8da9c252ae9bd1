"""Jobs of an overlay on Kubernetes, through its API; the operator starts a cluster for each."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dpmpp_core.config import ClusterConfig
from dpmpp_core.errors import ConfigError
from dpmpp_core.redaction import one_line
from pipelines.deploy.admission import iter_created_pods
from pipelines.deploy.capacity import list_needed_pods
from pipelines.deploy.check import find_job_problems, load_overlay_config
from pipelines.deploy.quota import JOB_OBJECTS, find_shortages
from pipelines.deploy.render import Object, format_name
from pipelines.deploy.schemas import Problem

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
ENDED_STATES = ("Complete", "Failed")
INSTALL_COMMAND = (
    "helm install kuberay-operator kuberay/kuberay-operator --version {} -n kuberay-system; see "
    "infra/README.md"
)


class Kubernetes:
    """A namespace of the cluster that kubectl's configuration names.

    Raises:
        ConfigError: no client library, no configuration, or no response.
    """

    def __init__(self, namespace: str, context: str | None = None) -> None:
        try:
            from kubernetes import client, config
        except ImportError:
            raise ConfigError(
                "the client of Kubernetes is missing: pip install 'dpmpp[deploy]' installs it"
            ) from None
        try:
            try:
                config.load_kube_config(context=context)
            except config.ConfigException:
                if context is not None:
                    raise
                config.load_incluster_config()
        except Exception as error:  # of any of its parsers
            raise ConfigError(
                f"no Kubernetes is configured ({one_line(str(error))[:200]}): set KUBECONFIG, or "
                "name a Ray cluster with --address"
            ) from None
        self._namespace, self._api_error = namespace, client.ApiException
        # Generated code: its types allow None for every field.
        self._core: Any = client.CoreV1Api()
        self._apps: Any = client.AppsV1Api()
        self._custom: Any = client.CustomObjectsApi()

    def submit(self, job: Object, objects: Sequence[Object], kuberay: str) -> dict[str, Any]:
        """Create the RayJob, unless it exists.

        The API server checks its schema (a dry run); its message is the error.

        Args:
            job: see `build_job`.
            objects: those of the overlay, applied before.
            kuberay: the version of the operator that the manifests are for.

        Raises:
            ConfigError: the server refuses it or one of its pods, no CRDs, another operator, a rule
                of ours, a missing secret, a quota that is too small.
        """
        name = job["metadata"]["name"]
        self._create(job, kuberay, dry_run="All")
        self._check_operator(kuberay)
        for problem in find_job_problems(job, objects):
            raise ConfigError(f"{problem} (`dpmpp deploy validate` shows all)")
        for problem in self.find_refused_pods([job]):
            raise ConfigError(str(problem))
        self._check_references(job)
        self._check_applied_config(objects)
        self._check_quotas(job, load_overlay_config(objects).cluster)
        if not self._create(job, kuberay):
            return self._existing_status(job)
        return self.status(name) | {"found": False}

    def read_applied(self, job: str) -> list[Object]:
        """Return the template of a job and the ConfigMaps, as they were applied.

        Raises:
            ConfigError: one of them is not there, or may not be read.
        """
        with _translate_errors():
            template: Any = self._custom.get_namespaced_custom_object(
                GROUP, VERSION, self._namespace, PLURAL, f"dpmpp-{job}"
            )
            maps = [
                self._core.read_namespaced_config_map(name, self._namespace)
                for name in ("dpmpp-config", "dpmpp-site", "dpmpp-versions")
            ]
        return [
            template,
            *(
                {"kind": "ConfigMap", "metadata": {"name": one.metadata.name}, "data": one.data}
                for one in maps
            ),
        ]

    def _create(self, job: Object, kuberay: str, **options: str) -> bool:
        """Create a RayJob, unknown fields refused; return False if it exists."""
        name = job["metadata"]["name"]
        with _translate_errors():
            try:
                self._custom.create_namespaced_custom_object(
                    GROUP, VERSION, self._namespace, PLURAL, job,
                    field_validation="Strict", **options,
                )  # fmt: skip
            except self._api_error as error:
                if error.status == 409:
                    return False
                if error.status == 404 and "page not found" in str(error.body):
                    raise ConfigError(
                        f"the cluster has no {GROUP}/{VERSION}: install KubeRay first: "
                        + INSTALL_COMMAND.format(kuberay)
                    ) from None
                raise ConfigError(f"RayJob/{name} is refused: {_api_message(error)}") from None
        return True

    def find_refused_pods(self, objects: Sequence[Object]) -> list[Problem]:
        """Let the API server check each pod that objects would have, in a dry run.

        It applies what is set on the cluster only: PodSecurity, LimitRange, webhooks. A user who
        may not create pods gets no problems.
        """
        problems: dict[str, Problem] = {}
        asked: set[str] = set()
        for thing in objects:
            for role, pod in iter_created_pods(thing):
                plain = pod | {"spec": {**pod["spec"]}}
                plain["spec"].pop("serviceAccountName", None)  # the operator creates the head's
                text = json.dumps(plain).replace(thing["metadata"]["name"], "")
                message = "" if text in asked else self._refuses_pod(plain)
                asked.add(text)
                if message is None:
                    return []
                if message:
                    problem = Problem(format_name(thing), f"pod {role}", message)
                    problems.setdefault(f"{role} {message}", problem)
        return [*problems.values()]

    def _refuses_pod(self, pod: Object) -> str | None:
        """Return why the server would refuse a pod, empty if it would not, None if unknown."""
        try:
            self._core.create_namespaced_pod(
                self._namespace, pod, dry_run="All", field_validation="Strict",
                _preload_content=False,
            )  # fmt: skip
        except self._api_error as error:
            message = _api_message(error)
            return None if "cannot create resource" in message else message
        return ""

    def _existing_status(self, job: Object) -> dict[str, Any]:
        name = job["metadata"]["name"]
        status = self.status(name)
        if status["status"] in ENDED_STATES and "ownerReferences" not in job["metadata"]:
            raise ConfigError(
                f"RayJob/{name} has run before and is {status['status']}: `dpmpp deploy stop "
                f"{name}` removes it, and the same command starts it again"
            )
        return status | {"found": True}

    def status(self, name: str) -> dict[str, Any]:
        """Return `job`, `status`, `ray` (Ray's status), `message`, `cluster`, `failed`, times."""
        try:
            rayjob: Any = self._custom.get_namespaced_custom_object(
                GROUP, VERSION, self._namespace, PLURAL, name
            )
        except self._api_error as error:
            raise ConfigError(
                f"no RayJob {name!r} in {self._namespace}: {_api_message(error)}"
            ) from None
        return _format_status(rayjob)

    def list(self) -> list[dict[str, Any]]:
        """Return every RayJob of the namespace but the suspended templates, as `status`."""
        with _translate_errors():
            rayjobs: Any = self._custom.list_namespaced_custom_object(
                GROUP, VERSION, self._namespace, PLURAL
            )
        return [
            _format_status(item) for item in rayjobs["items"] if not item["spec"].get("suspend")
        ]

    def logs(self, name: str, follow: bool, write: Any) -> None:
        """Write what the job's program printed, from the log of the submitter's pod."""
        self.status(name)
        selector = f"batch.kubernetes.io/job-name={name}"
        with _translate_errors():
            pods = self._core.list_namespaced_pod(self._namespace, label_selector=selector).items
            if not pods:
                raise ConfigError(f"RayJob/{name} has no submitter yet: its cluster is starting")
            newest = max(pods, key=lambda pod: pod.metadata.creation_timestamp)
            stream = self._core.read_namespaced_pod_log(
                newest.metadata.name, self._namespace, follow=follow, _preload_content=False
            )
            for chunk in stream.stream(decode_content=True):
                write(chunk.decode(errors="replace"))

    def stop(self, name: str) -> dict[str, Any]:
        """Delete the RayJob with its cluster; checkpoints and results stay in the storage."""
        status = self.status(name)
        with _translate_errors():
            self._custom.delete_namespaced_custom_object(
                GROUP, VERSION, self._namespace, PLURAL, name, propagation_policy="Foreground"
            )
        return status | {"status": "deleted"}

    def _check_operator(self, wanted: str) -> None:
        """Check that the operator has the version of the manifests, if it may be read."""
        try:
            operators = self._apps.list_deployment_for_all_namespaces(
                label_selector="app.kubernetes.io/name=kuberay-operator"
            ).items
        except self._api_error:  # a user may lack the right to read other namespaces
            return
        for operator in operators:
            image = operator.spec.template.spec.containers[0].image
            tag = image.rpartition(":")[2].removeprefix("v")
            if tag.split(".")[:2] != wanted.split(".")[:2]:
                raise ConfigError(
                    f"the cluster runs KubeRay {tag}, the manifests are for {wanted}: upgrade it, "
                    "or set KUBERAY_VERSION in versions.env once they are checked against its CRDs"
                )

    def _check_references(self, job: Object) -> None:
        """Check that secrets and ConfigMaps exist that pods need, or they would wait for ever.

        The API server accepts a job without them; only the kubelet needs them, much later.
        """
        for kind, name in sorted(set(_iter_references(job))):
            read = getattr(self._core, f"read_namespaced_{kind}")
            try:
                read(name, self._namespace)
            except self._api_error as error:
                if error.status == 403:  # this user may not read it
                    continue
                how = "see infra/README.md" if kind == "secret" else "apply the overlay first"
                raise ConfigError(
                    f"{self._namespace} has no {kind} {name!r}, which the pods need: {how}"
                ) from None

    def _check_applied_config(self, objects: Sequence[Object]) -> None:
        for thing in objects:
            if thing["kind"] == "ConfigMap" and thing["metadata"]["name"] == "dpmpp-config":
                with _translate_errors():
                    there = self._core.read_namespaced_config_map("dpmpp-config", self._namespace)
                if there.data != thing["data"]:
                    raise ConfigError(
                        "the cluster's dpmpp-config is not that of the overlay: apply the overlay "
                        "(kubectl apply -k) before submitting"
                    )

    def _check_quotas(self, job: Object, config: ClusterConfig) -> None:
        """Check that all pods that the job needs at once fit into every quota.

        A dry run does not check it: the operator creates the pods later, one by one.
        """
        try:
            quotas = self._core.list_namespaced_resource_quota(self._namespace).items
        except self._api_error:  # a user may lack the right to read them
            return
        pods = list_needed_pods(job, config)
        for quota in quotas:
            plain = self._core.api_client.sanitize_for_serialization(quota)
            for shortage in find_shortages(plain, pods, JOB_OBJECTS):
                raise ConfigError(shortage)


def _iter_references(job: Object) -> Iterator[tuple[str, str]]:
    """Yield (`secret` or `config_map`, name) of all that a job's pods refer to.

    But for the token of the cluster, which the operator creates.
    """
    for _, pod in iter_created_pods(job):
        spec = pod["spec"]
        for pull in spec.get("imagePullSecrets") or []:
            yield "secret", pull["name"]
        for volume in spec.get("volumes") or []:
            if "configMap" in volume:
                yield "config_map", volume["configMap"]["name"]
            if "secret" in volume:
                yield "secret", volume["secret"]["secretName"]
        for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
            for item in [*(container.get("envFrom") or []), *(container.get("env") or [])]:
                source = item.get("valueFrom") or item
                if "configMapRef" in source or "configMapKeyRef" in source:
                    yield (
                        "config_map",
                        (source.get("configMapRef") or source["configMapKeyRef"])["name"],
                    )
                secret = source.get("secretRef") or source.get("secretKeyRef")
                if secret and item.get("name") != "RAY_AUTH_TOKEN":
                    yield "secret", secret["name"]


def _format_status(rayjob: Any) -> dict[str, Any]:
    status = rayjob.get("status") or {}
    return {
        "job": rayjob["metadata"]["name"],
        "status": status.get("jobDeploymentStatus") or "New",
        "ray": status.get("jobStatus") or "",
        "message": one_line(status.get("message") or status.get("reason") or ""),
        "cluster": status.get("rayClusterName"),
        "failed": status.get("failed", 0),
        "started": status.get("startTime"),
        "ended": status.get("endTime"),
        "entrypoint": rayjob["spec"].get("entrypoint"),
    }


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Translate errors of the API and the network into ConfigError."""
    import urllib3
    from kubernetes.client.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        raise ConfigError(f"Kubernetes refuses: {_api_message(error)}") from None
    except urllib3.exceptions.HTTPError as error:
        raise ConfigError(f"Kubernetes does not respond: {one_line(str(error))[:200]}") from None


def _api_message(error: Any) -> str:
    """Return the message inside an ApiException."""
    try:
        return one_line(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return one_line(f"{error.status} {error.reason}")


def wait_until_ended(get_status: Any, ended: Sequence[str], seconds: float = 2.0) -> dict[str, Any]:
    """Poll a status until it is one of `ended`."""
    while (status := get_status())["status"] not in ended:
        time.sleep(seconds)
    return status
