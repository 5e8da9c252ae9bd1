"""Check that the network policies of an overlay let pods reach the addresses in site.env."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pipelines.deploy.admission import iter_created_pods
from pipelines.deploy.render import Object, get_object

DEFAULT_PORTS = {"http": 80, "https": 443, "redis": 6379, "rediss": 6379}
# By variable of site.env: roles of the pods that connect to it.
USERS = {
    "AWS_ENDPOINT_URL": ("driver", "data", "train", "Deployment"),
    "REDIS_ADDRESS": ("head", "clean-up"),
    "DPMPP_TRACKING_URI": ("driver",),
}


class Endpoint(NamedTuple):
    """A pod by its labels and port names, for policies."""

    labels: Mapping[str, str]
    ports: Mapping[str, int]  # by name


def list_endpoints(objects: Sequence[Object]) -> dict[str, Endpoint]:
    """Return the kinds of pods of an overlay: by role of Ray, or by name of a server."""
    found: dict[str, Endpoint] = {}
    for thing in objects:
        for role, pod in iter_created_pods(thing):
            ports = {
                port["name"]: port["containerPort"]
                for container in pod["spec"]["containers"]
                for port in container.get("ports") or []
                if "name" in port
            }
            servers = ("Deployment", "StatefulSet", "CronJob")
            name = thing["metadata"]["name"] if role in servers else role
            found.setdefault(name, Endpoint(pod["metadata"].get("labels") or {}, ports))
    return found


def check_addresses(objects: Sequence[Object]) -> Iterator[tuple[str, str]]:
    """Yield (variable of site.env, sentence) for each address that some pods cannot reach."""
    site = get_object(list(objects), "ConfigMap", "dpmpp-site").get("data") or {}
    policies = [thing["spec"] for thing in objects if thing["kind"] == "NetworkPolicy"]
    endpoints = list_endpoints(objects)
    servers = [thing["metadata"]["name"] for thing in objects if thing["kind"] == "Deployment"]
    for variable, roles in USERS.items():
        if not site.get(variable):
            continue
        target, port, problem = _find_target(site[variable], objects, endpoints)
        if problem:
            yield variable, f"{site[variable]}: {problem}"
            continue
        for role in (name for r in roles for name in (servers if r == "Deployment" else [r])):
            source = endpoints.get(role)
            if source and not is_allowed(policies, source, target, port):
                yield (
                    variable,
                    f"{site[variable]}: the network policies keep {role} from port {port}: "
                    "allow it in network.yaml of base, stores or managed",
                )


def _find_target(
    address: str, objects: Sequence[Object], endpoints: Mapping[str, Endpoint]
) -> tuple[Endpoint | None, int, str]:
    """Return (pod or None outside of the namespace, its port, what is wrong with the address)."""
    try:
        parts = urlsplit(address)
        host, given = parts.hostname or "", parts.port
    except ValueError as error:
        return None, 0, str(error)
    port = given or DEFAULT_PORTS.get(parts.scheme, 0)
    if not host or not port:
        return None, 0, "no address with scheme, host and port, as http://mlflow:5000"
    services = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Service"}
    service = services.get(host.partition(".")[0])
    if service is None or (("." in host) and not host.partition(".")[2].count("svc")):
        bare = "." not in host and host != "localhost"
        return None, port, f"there is no Service {host!r} in the overlay" if bare else ""
    for offered in service["ports"]:
        if offered["port"] == port:
            for endpoint in endpoints.values():
                if service["selector"].items() <= endpoint.labels.items():
                    target = offered.get("targetPort", port)
                    return endpoint, endpoint.ports.get(target, target), ""
            return None, port, f"no pod answers for the Service {host!r}"
    ports = ", ".join(str(offered["port"]) for offered in service["ports"])
    return None, port, f"the Service {host!r} has port {ports}, not {port}"


def is_allowed(
    policies: Sequence[Mapping[str, Any]], source: Endpoint, target: Endpoint | None, port: int
) -> bool:
    """Return whether policies let TCP from a pod to a port of another pod, None = outside."""
    out = _passes(policies, "Egress", source, target, port, target)
    return out and (target is None or _passes(policies, "Ingress", target, source, port, target))


def _passes(
    policies: Sequence[Mapping[str, Any]],
    direction: str,
    pod: Endpoint,
    peer: Endpoint | None,
    port: int,
    listener: Endpoint | None,
) -> bool:
    selected = [
        policy
        for policy in policies
        if _selects(policy.get("podSelector") or {}, pod.labels)
        and direction in (policy.get("policyTypes") or ["Ingress"])
    ]
    peers = "to" if direction == "Egress" else "from"
    return not selected or any(
        _has_port(rule.get("ports"), port, listener) and _has_peer(rule.get(peers), peer)
        for policy in selected
        for rule in policy.get(direction.lower()) or []
    )


def _has_port(ports: Sequence[Mapping[str, Any]] | None, port: int, pod: Endpoint | None) -> bool:
    names = {number: name for name, number in pod.ports.items()} if pod else {}
    return not ports or any(
        item.get("protocol", "TCP") == "TCP"
        and (
            item.get("port") in (None, port, names.get(port, port))
            or ("endPort" in item and item["port"] <= port <= item["endPort"])
        )
        for item in ports
    )


def _has_peer(peers: Sequence[Mapping[str, Any]] | None, peer: Endpoint | None) -> bool:
    """Return whether a peer is among those; pods of other namespaces are never asked for."""
    if not peers:
        return True
    if peer is None:
        return any("ipBlock" in item for item in peers)
    return any(
        "namespaceSelector" not in item and _selects(item["podSelector"], peer.labels)
        for item in peers
        if "podSelector" in item
    )


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    tests = {
        "In": lambda value, values: value in values,
        "NotIn": lambda value, values: value not in values,
        "Exists": lambda value, values: value is not None,
        "DoesNotExist": lambda value, values: value is None,
    }
    return (selector.get("matchLabels") or {}).items() <= labels.items() and all(
        tests[item["operator"]](labels.get(item["key"]), item.get("values") or [])
        for item in selector.get("matchExpressions") or []
    )
