"""The level *restricted* of Kubernetes' Pod Security Standards, which the namespace enforces.

The API server refuses such a pod when the operator creates it: the job was accepted long before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.deploy.rules import Findings

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
PROFILES = ("RuntimeDefault", "Localhost")
APPARMOR = (*PROFILES, None)
CONTAINER_KINDS = ("initContainers", "containers", "ephemeralContainers")


def check_pod_security(spec: Mapping[str, Any]) -> Findings:
    """Yield (path, sentence) for each rule of the level *restricted* that a pod breaks."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"spec.{name}", "the namespace's level `restricted` forbids it"
    for number, volume in enumerate(spec.get("volumes") or []):
        for kind in sorted(set(volume) - {"name"} - VOLUMES):
            yield f"spec.volumes[{number}]", f"{kind}: forbidden by the level `restricted`"
    pod = spec.get("securityContext") or {}
    for sysctl in pod.get("sysctls") or []:
        if sysctl.get("name") not in SYSCTLS:
            yield "spec.securityContext.sysctls", f"{sysctl.get('name')} is not among the safe ones"
    yield from _check_context("spec.securityContext", pod)
    for path, container in _iter_containers(spec):
        own = container.get("securityContext") or {}
        yield from _check_context(f"{path}.securityContext", own)
        yield from _check_container(path, container, own, pod)


def _iter_containers(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for kind in CONTAINER_KINDS:
        for number, container in enumerate(spec.get(kind) or []):
            yield f"spec.{kind}[{number}]", container


def _check_context(path: str, context: Mapping[str, Any]) -> Findings:
    """Check what pods and containers may both set."""
    if context.get("runAsNonRoot") is False:
        yield f"{path}.runAsNonRoot", "false is forbidden by the level `restricted`"
    if context.get("runAsUser") == 0:
        yield f"{path}.runAsUser", "0 is root"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"{path}.seLinuxOptions", "forbidden by the level `restricted`"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{path}.windowsOptions.hostProcess", "forbidden by the level `restricted`"
    profile = context.get("seccompProfile") or {}
    if profile and profile.get("type") not in PROFILES:
        yield f"{path}.seccompProfile.type", f"{profile.get('type')!r} is none of {_list(PROFILES)}"
    if (context.get("appArmorProfile") or {}).get("type") not in APPARMOR:
        yield f"{path}.appArmorProfile.type", f"is none of {_list(PROFILES)}"


def _check_container(
    path: str, container: Mapping[str, Any], own: Mapping[str, Any], pod: Mapping[str, Any]
) -> Findings:
    """Check what a container may only set itself, or has from its pod."""
    where = f"{path}.securityContext"
    if own.get("privileged"):
        yield f"{where}.privileged", "forbidden by the level `restricted`"
    if own.get("allowPrivilegeEscalation") is not False:
        yield where, "allowPrivilegeEscalation: false is missing"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield f"{where}.capabilities", "drop: [ALL] is missing"
    for added in sorted(set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}):
        yield f"{where}.capabilities.add", f"{added} is forbidden by the level `restricted`"
    if own.get("procMount", "Default") != "Default":
        yield f"{where}.procMount", "only Default is allowed"
    if own.get("runAsNonRoot") is None and not pod.get("runAsNonRoot"):
        yield where, "runAsNonRoot: true is missing, here and of the pod"
    if not (own.get("seccompProfile") or pod.get("seccompProfile")):
        yield where, "seccompProfile: {type: RuntimeDefault} is missing, here and of the pod"
    for number, port in enumerate(container.get("ports") or []):
        if port.get("hostPort"):
            yield f"{path}.ports[{number}].hostPort", "forbidden by the level `restricted`"
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        for kind in ("httpGet", "tcpSocket"):
            if ((container.get(probe) or {}).get(kind) or {}).get("host"):
                yield f"{path}.{probe}.{kind}.host", "forbidden by the level `restricted`"


def _list(values: tuple[str, ...]) -> str:
    return ", ".join(values)
