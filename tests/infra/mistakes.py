"""Deliberate mistakes in the manifests: what is done to them, and what must be said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.deploy.render import Object, get_object


@dataclass(frozen=True)
class Mistake:
    name: str
    make: Callable[[list[Object]], Any]
    said: str  # regular expression
    needs_crds: bool = False


def cluster(objects: list[Object]) -> dict[str, Any]:
    return get_object(objects, "RayCluster", "dpmpp")["spec"]


def group(objects: list[Object], number: int) -> dict[str, Any]:
    return cluster(objects)["workerGroupSpecs"][number]


def pod(objects: list[Object], number: int) -> dict[str, Any]:
    return group(objects, number)["template"]["spec"]


def ray(objects: list[Object], number: int) -> dict[str, Any]:
    return pod(objects, number)["containers"][0]


def head(objects: list[Object]) -> dict[str, Any]:
    return cluster(objects)["headGroupSpec"]


def job(objects: list[Object], name: str = "train") -> dict[str, Any]:
    return get_object(objects, "RayJob", f"dpmpp-{name}")["spec"]


def rename(objects: list[Object], kind: str, name: str) -> None:
    next(o for o in objects if o["kind"] == kind)["metadata"]["name"] = name


def of_config(objects: list[Object], old: str, new: str) -> None:
    data = get_object(objects, "ConfigMap", "dpmpp-config")["data"]
    assert old in data["config.yaml"]
    data["config.yaml"] = data["config.yaml"].replace(old, new)


def policy(objects: list[Object]) -> dict[str, Any]:
    return get_object(objects, "NetworkPolicy", "ray")["spec"]


def nightly(objects: list[Object]) -> dict[str, Any]:
    return get_object(objects, "CronJob")["spec"]


def quota(objects: list[Object]) -> dict[str, Any]:
    return get_object(objects, "ResourceQuota")["spec"]["hard"]


def site(objects: list[Object]) -> dict[str, Any]:
    return get_object(objects, "ConfigMap", "dpmpp-site")["data"]


def add_both_clusters(o: list[Object]) -> None:
    job(o).update(clusterSelector={"ray.io/cluster": "dpmpp"})


MISTAKES = [
    # What a server would drop or refuse.
    Mistake("misspelt field", lambda o: group(o, 1).update(maxReplica=3),
            r"unknown field 'maxReplica'; did you mean 'maxReplicas'", True),
    Mistake("number as text", lambda o: group(o, 1).update(maxReplicas="4"),
            r'maxReplicas: "4" is no integer', True),
    Mistake("start parameter as number",
            lambda o: head(o)["rayStartParams"].update({"num-cpus": 0}),
            r"rayStartParams.num-cpus: 0 is no string: quote it", True),
    Mistake("wrong unit", lambda o: ray(o, 1)["resources"]["limits"].update(memory="2GB"),
            r"'2GB' is no quantity; write it as 500m, 2 or 2Gi", True),
    Mistake("CPUs as a fraction", lambda o: ray(o, 1)["resources"]["limits"].update(cpu=0.5),
            r"resources.limits.cpu: 0.5 is no", True),
    Mistake("no head", lambda o: cluster(o).pop("headGroupSpec"),
            r"headGroupSpec is missing", True),
    Mistake("unknown authentication", lambda o: cluster(o)["authOptions"].update(mode="tokens"),
            r"'tokens' is none of disabled, token", True),
    Mistake("too large a number", lambda o: job(o).update(activeDeadlineSeconds=2**33),
            r"activeDeadlineSeconds", True),
    Mistake("the same mount twice",
            lambda o: ray(o, 1)["volumeMounts"].append(dict(ray(o, 1)["volumeMounts"][0])),
            r"volumeMounts: /tmp stands here 2 times", True),
    Mistake("unknown version", lambda o: get_object(o, "RayCluster").update(apiVersion="ray.io/v2"),
            r"no version v2 \(it has v1", True),
    Mistake("field of a network policy", lambda o: policy(o).update(ingres=[]),
            r"unknown field 'ingres'; did you mean 'ingress'"),
    Mistake("field of a deployment",
            lambda o: get_object(o, "Deployment")["spec"]["template"]["spec"].update(container=[]),
            r"unknown field 'container'; did you mean 'containers'"),
    Mistake("unknown kind", lambda o: get_object(o, "Deployment").update(kind="Deploymnet"),
            r"no schema of apps/v1 Deploymnet"),
    # What the operator would refuse.
    Mistake("long name of a cluster", lambda o: rename(o, "RayCluster", "a" * 54), r"takes 53"),
    Mistake("long name of a job", lambda o: rename(o, "RayJob", "a" * 48), r"takes 47"),
    Mistake("long name of a schedule", lambda o: rename(o, "CronJob", "a" * 53), r"takes 52"),
    Mistake("name that begins with a digit", lambda o: rename(o, "RayJob", "1st"),
            r"beginning with a letter"),
    Mistake("group without container", lambda o: pod(o, 1).update(containers=[]),
            r"the group data has no container"),
    Mistake("fewest above most", lambda o: group(o, 1).update(minReplicas=9),
            r"9 is not between 0 and maxReplicas 2"),
    Mistake("no most", lambda o: group(o, 1).pop("maxReplicas"), r"has no limit"),
    Mistake("resources twice", lambda o: group(o, 0).update(rayStartParams={"num-cpus": "1"}),
            r"resources stand in rayStartParams too"),
    Mistake("labels as parameter", lambda o: group(o, 1).update(rayStartParams={"labels": "a=b"}),
            r"labels belong into"),
    Mistake("bad label", lambda o: group(o, 1).update(labels={"pool": "da ta"}), r"is no label"),
    Mistake("two groups of a name", lambda o: group(o, 2).update(groupName="data"),
            r"two groups are named 'data'"),
    Mistake("restart policy", lambda o: pod(o, 1).update(restartPolicy="Always"),
            r"needs Never, or none"),
    Mistake("clean-up without shutdown", lambda o: job(o).update(shutdownAfterJobFinishes=False),
            r"ttlSecondsAfterFinished: needs shutdownAfterJobFinishes"),
    Mistake("two ways to a cluster", add_both_clusters,
            r"exactly one of rayClusterSpec and clusterSelector"),
    Mistake("no cluster", lambda o: job(o).pop("rayClusterSpec"), r"exactly one of"),
    Mistake("retries on a shared cluster",
            lambda o: (add_both_clusters(o), job(o).pop("rayClusterSpec")),
            r"backoffLimit: does not go together with clusterSelector"),
    Mistake("unknown mode", lambda o: job(o).update(submissionMode="JobMode"),
            r"'JobMode' is none of K8sJobMode"),
    Mistake("retries by hand", lambda o: job(o).update(submissionMode="InteractiveMode"),
            r"does not go together with InteractiveMode"),
    Mistake("no time at all", lambda o: job(o).update(activeDeadlineSeconds=0),
            r"0 is not above 0"),
    Mistake("environment that is no YAML", lambda o: job(o).update(runtimeEnvYAML="a: [1"),
            r"runtimeEnvYAML: is no YAML mapping"),
    Mistake("resources that are no JSON", lambda o: job(o).update(entrypointResources="driver: 1"),
            r"entrypointResources: is no JSON object"),
    Mistake("variable in the command", lambda o: job(o).update(entrypoint="dpmpp train --data $D"),
            r"a shell on its way would change it; written as .*'\\\$D' it arrives"),
    Mistake("password beside the options",
            lambda o: head(o)["template"]["spec"]["containers"][0]["env"].append(
                {"name": "REDIS_PASSWORD", "value": ""}),
            r"REDIS_PASSWORD belongs into gcsFaultToleranceOptions"),
    Mistake("an old switch", lambda o: get_object(o, "RayCluster")["metadata"].update(
                annotations={"ray.io/ft-enabled": "true"}),
            r"ft-enabled: belongs into gcsFaultToleranceOptions"),
    Mistake("Ray without tokens", lambda o: cluster(o).update(rayVersion="2.9.0"),
            r"tokens need Ray 2.52"),
    Mistake("hour 25", lambda o: nightly(o).update(schedule="0 25 * * *"),
            r"'25' in '0 25 \* \* \*' is not between 0 and 23"),
    Mistake("four fields", lambda o: nightly(o).update(schedule="0 2 * *"),
            r"has not five fields"),
    Mistake("words as schedule", lambda o: nightly(o).update(schedule="at half past two daily"),
            r"'at' in .* is not between 0 and 59"),
    Mistake("range backwards", lambda o: nightly(o).update(schedule="0 2 * * FRI-MON"),
            r"'FRI-MON' in .* is not between 0 and 6"),
    Mistake("step of nothing", lambda o: nightly(o).update(schedule="*/0 2 * * *"),
            r"'\*/0' in .* is not between 0 and 59"),
    Mistake("time zone", lambda o: nightly(o).update(timeZone="Berlin"), r"'Berlin' is no time"),
    # What the server or the kubelet would refuse in the pods, after the job was accepted.
    Mistake("fewer than none", lambda o: group(o, 1).update(maxReplicas=-4),
            r"minReplicas: 0 is not between 0 and maxReplicas -4"),
    Mistake("more replicas than most", lambda o: group(o, 1).update(replicas=9),
            r"replicas: 9 is not between 0 and maxReplicas 2"),
    Mistake("requests above limits", lambda o: ray(o, 1)["resources"]["requests"].update(cpu="64"),
            r"pod data: spec.containers\[0\].resources.requests.cpu: 64 is above the limit 2"),
    Mistake("requests of the autoscaler",
            lambda o: cluster(o)["autoscalerOptions"]["resources"]["requests"].update(cpu="9"),
            r"pod head: spec.containers\[1\].resources.requests.cpu: 9 is above the limit 500m"),
    Mistake("less than no memory", lambda o: ray(o, 1)["resources"]["limits"].update(memory="-1"),
            r"\[1\].template.spec.*limits.memory: -1 is below 0"),
    Mistake("container without image", lambda o: ray(o, 2).pop("image"),
            r"pod train: spec.containers\[0\].image: is missing"),
    Mistake("digest for a tag",
            lambda o: ray(o, 1).update(image=f"r.example.com/dpmpp@sha256:{'a' * 64}:0.2.0"),
            r"pod data: .*0\.2\.0' is no image: .*TAG=0.2.0@sha256"),
    Mistake("capital letters in an image", lambda o: ray(o, 1).update(image="R/Dpmpp:0.2.0"),
            r"'R/Dpmpp:0.2.0' is no image"),
    Mistake("container of no name", lambda o: ray(o, 1).update(name="Ray_1"),
            r"pod data: spec.containers\[0\].name: 'Ray_1': small letters"),
    Mistake("two containers of a name",
            lambda o: pod(o, 1)["containers"].append({**ray(o, 1), "name": "wait-gcs-ready"}),
            r"pod data: spec.containers: 'wait-gcs-ready' stands there 2 times"),
    Mistake("misspelt field of a pod", lambda o: ray(o, 1).update(volumeMount=[]),
            r"template.spec.containers\[0\]: unknown field 'volumeMount'; did you mean"),
    Mistake("policy of pulling", lambda o: ray(o, 1).update(imagePullPolicy="Sometimes"),
            r"imagePullPolicy: 'Sometimes' is none of Always"),
    Mistake("effect of a toleration",
            lambda o: pod(o, 1).update(tolerations=[{"key": "a", "effect": "Never"}]),
            r"effect: 'Never' is none of NoSchedule"),
    Mistake("label with a blank",
            lambda o: group(o, 1)["template"]["metadata"]["labels"].update(team="a b"),
            r"metadata.labels.team: 'a b' is no label"),
    Mistake("name of a port", lambda o: ray(o, 1)["ports"].append(
                {"name": "much-too-long-a-name", "containerPort": 1}),
            r"ports\[1\].name: 'much-too-long-a-name': 15 small letters"),
    Mistake("a mount over another", lambda o: ray(o, 1)["volumeMounts"].append(
                {"name": "config", "mountPath": "/dev/shm"}) or ray(o, 1)["volumeMounts"].append(
                {"name": "scratch", "mountPath": "/tmp"}),
            r"pod data: spec.containers\[0\].volumeMounts: '/tmp' stands there 2 times"),
    Mistake("a share of a GPU",
            lambda o: ray(o, 2)["resources"].update(
                limits={**ray(o, 2)["resources"]["limits"], "nvidia.com/gpu": 2},
                requests={**ray(o, 2)["resources"]["requests"], "nvidia.com/gpu": 1}),
            r"requests.nvidia.com/gpu: differs from the limit"),
    Mistake("submitter without volume", lambda o: job(o)["submitterPodTemplate"]["spec"].pop(
                "volumes"), r"pod submitter: .*volumeMounts: there is no volume 'scratch'"),
    # The level `restricted`.
    *(Mistake(f"restricted: {name}", change, said) for name, change, said in (
        ("network of the host", lambda o: pod(o, 1).update(hostNetwork=True),
         r"pod data: spec.hostNetwork: .*forbids"),
        ("folder of the host", lambda o: pod(o, 1)["volumes"].append(
            {"name": "h", "hostPath": {"path": "/"}}), r"volumes\[2\]: hostPath: forbidden"),
        ("disk over the network", lambda o: pod(o, 1)["volumes"].append(
            {"name": "n", "nfs": {"server": "s", "path": "/"}}), r"volumes\[2\]: nfs: forbidden"),
        ("port of the host", lambda o: ray(o, 1)["ports"][0].update(hostPort=8080),
         r"ports\[0\].hostPort: forbidden"),
        ("privileged", lambda o: ray(o, 1)["securityContext"].update(privileged=True),
         r"securityContext.privileged: forbidden"),
        ("escalation", lambda o: ray(o, 1)["securityContext"].pop("allowPrivilegeEscalation"),
         r"allowPrivilegeEscalation: false is missing"),
        ("capabilities kept", lambda o: ray(o, 1)["securityContext"].pop("capabilities"),
         r"pod data: .*capabilities: drop: \[ALL\] is missing"),
        ("capability added", lambda o: ray(o, 1)["securityContext"]["capabilities"].update(
            add=["SYS_PTRACE"]), r"capabilities.add: SYS_PTRACE is forbidden"),
        ("root again", lambda o: ray(o, 1)["securityContext"].update(runAsUser=0),
         r"runAsUser: 0 is root"),
        ("root of one container", lambda o: ray(o, 1)["securityContext"].update(runAsNonRoot=False),
         r"runAsNonRoot: false is forbidden"),
        ("no seccomp", lambda o: pod(o, 1)["securityContext"].pop("seccompProfile"),
         r"seccompProfile: \{type: RuntimeDefault\} is missing"),
        ("seccomp off", lambda o: pod(o, 1)["securityContext"].update(
            seccompProfile={"type": "Unconfined"}), r"'Unconfined' is none of RuntimeDefault"),
        ("kernel's values", lambda o: pod(o, 1)["securityContext"].update(
            sysctls=[{"name": "kernel.msgmax", "value": "1"}]), r"kernel.msgmax is not among"),
        ("the autoscaler", lambda o: cluster(o)["autoscalerOptions"].pop("securityContext"),
         r"pod head: spec.containers\[1\].securityContext: allowPrivilegeEscalation"),
        ("the submitter", lambda o: job(o)["submitterPodTemplate"]["spec"].pop("securityContext"),
         r"pod submitter: .*runAsNonRoot: true is missing"),
        ("no submitter of ours", lambda o: job(o).pop("submitterPodTemplate"),
         r"pod submitter: .*allowPrivilegeEscalation: false is missing"),
        ("a store", lambda o: get_object(o, "StatefulSet", "dpmpp-redis")["spec"]["template"][
            "spec"].update(hostPID=True), r"StatefulSet/dpmpp-redis pod StatefulSet: spec.hostPID"),
        ("the night", lambda o: nightly(o)["jobTemplate"]["spec"]["template"]["spec"].pop(
            "securityContext"), r"CronJob/dpmpp-nightly pod CronJob: .*runAsNonRoot"),
    )),
    # What we would regret.
    Mistake("nights on top of one another",
            lambda o: nightly(o).update(concurrencyPolicy="Allow"), r"is not Forbid"),
    Mistake("nights long ago", lambda o: nightly(o).pop("startingDeadlineSeconds"),
            r"startingDeadlineSeconds: is missing or below 60"),
    Mistake("schedule of the operator",
            lambda o: o.append({"apiVersion": "ray.io/v1", "kind": "RayCronJob", "spec": {},
                                "metadata": {"name": "n"}}),
            r"RayCronJob/n: it starts every missed run at once"),
    Mistake("quota below a job", lambda o: quota(o).update({"requests.cpu": "8"}),
            r"quota dpmpp: requests.cpu 8, 3.35 of it used, .* take 6.95 .*head 1.5"),
    Mistake("quota in words", lambda o: quota(o).update({"requests.cpu": "many"}),
            r"ResourceQuota/dpmpp spec.hard.requests.cpu: 'many' is no quantity"),
    Mistake("unit that there is not, without schemas",
            lambda o: ray(o, 1)["resources"]["limits"].update(memory="2GB"),
            r"RayCluster/dpmpp spec.workerGroupSpecs\[1\].*limits.memory: '2GB' is no quantity"),
    Mistake("Ray's resources in words", lambda o: group(o, 0)["resources"].update(driver="four"),
            r"RayCluster/dpmpp spec.workerGroupSpecs\[0\].resources.driver: 'four' is no quantity"),
    Mistake("variables as a mapping", lambda o: ray(o, 1).update(env={"A": "b"}),
            r"workerGroupSpecs\[1\].template.spec.containers\[0\].env: .* is no array"),
    Mistake("password of Redis as text",
            lambda o: cluster(o)["gcsFaultToleranceOptions"].update(redisPassword="x"),
            r"redisPassword: needs `valueFrom` with a secret"),
    Mistake("submitter without container",
            lambda o: job(o)["submitterPodTemplate"]["spec"].update(containers=None),
            r"RayJob/dpmpp-train spec.submitterPodTemplate.spec: containers is missing"),
    Mistake("no quota", lambda o: o.remove(get_object(o, "ResourceQuota")),
            r"there is no ResourceQuota"),
    Mistake("S3 on another port", lambda o: site(o).update(AWS_ENDPOINT_URL="http://dpmpp-s3:9000"),
            r"AWS_ENDPOINT_URL: .*the Service 'dpmpp-s3' has port 8333, not 9000"),
    Mistake("S3 outside", lambda o: site(o).update(AWS_ENDPOINT_URL="https://s3.example.com:9000"),
            r"AWS_ENDPOINT_URL: .*keep data from port 9000"),
    Mistake("Redis outside", lambda o: site(o).update(REDIS_ADDRESS="rediss://r.example.com:6380"),
            r"REDIS_ADDRESS: .*keep head from port 6380"),
    Mistake("MLflow on another port",
            lambda o: site(o).update(DPMPP_TRACKING_URI="http://mlflow:8080"),
            r"DPMPP_TRACKING_URI: .*the Service 'mlflow' has port 5000, not 8080"),
    Mistake("MLflow elsewhere",
            lambda o: site(o).update(DPMPP_TRACKING_URI="http://mlflow.example.com:8080"),
            r"DPMPP_TRACKING_URI: .*keep driver from port 8080"),
    Mistake("Redis of no one", lambda o: site(o).update(REDIS_ADDRESS="redis://dpmpp-rediss:6379"),
            r"there is no Service 'dpmpp-rediss'"),
    Mistake("address without scheme", lambda o: site(o).update(REDIS_ADDRESS="dpmpp-redis"),
            r"REDIS_ADDRESS: .*no address with scheme, host and port"),
    Mistake("a policy too narrow",
            lambda o: get_object(o, "NetworkPolicy", "s3")["spec"].update(ingress=[]),
            r"AWS_ENDPOINT_URL: .*keep mlflow from port 8333"),
    Mistake("a secret to pull with, of one group",
            lambda o: pod(o, 1).update(imagePullSecrets=[{"name": "registry"}]),
            r"RayCluster/dpmpp pod head: imagePullSecrets lack registry"),
    Mistake("pools for some", lambda o: pod(o, 1).update(nodeSelector={"dpmpp/pool": "data"}),
            r"StatefulSet/dpmpp-redis pod StatefulSet: its dpmpp/pool is missing, not system"),
    Mistake("mount without volume",
            lambda o: ray(o, 1)["volumeMounts"].append({"name": "cache", "mountPath": "/c"}),
            r"there is no volume 'cache'"),
    Mistake("requests below limits", lambda o: ray(o, 1)["resources"].update(requests={"cpu": "1"}),
            r"requests and limits differ"),
    Mistake("head that works", lambda o: head(o)["rayStartParams"].pop("num-cpus"),
            r"so the head would take work"),
    Mistake("image without tag", lambda o: ray(o, 1).update(image="registry:5000/dpmpp"),
            r"has no fixed tag"),
    Mistake("root", lambda o: pod(o, 1).pop("securityContext"), r"runAsNonRoot: true is missing"),
    Mistake("no token", lambda o: cluster(o).pop("authOptions"), r"is not `token`"),
    Mistake("password in the manifest",
            lambda o: cluster(o)["gcsFaultToleranceOptions"].update(redisPassword={"value": "x"}),
            r"take it from a secret"),
    Mistake("secret in the manifest",
            lambda o: o.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}),
            r"secrets are created on the cluster"),
    Mistake("no deadline", lambda o: job(o).pop("activeDeadlineSeconds"),
            r"a job that hangs would hold its nodes"),
    Mistake("driver without a place", lambda o: job(o).update(entrypointResources='{"drivers": 1}'),
            r"no group has the resource 'drivers'"),
    Mistake("GPU without toleration",
            lambda o: [r.update({"nvidia.com/gpu": 1}) for r in ray(o, 2)["resources"].values()],
            r"does not tolerate its taint"),
    Mistake("drain longer than the grace period",
            lambda o: ray(o, 1)["env"].append(
                {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": "120"}),
            r"below 150: Ray drains the node for 120 seconds"),
    Mistake("configuration that is not there",
            lambda o: o.remove(get_object(o, "ConfigMap", "dpmpp-config")),
            r"no ConfigMap 'dpmpp-config'"),
    Mistake("unknown configuration key", lambda o: of_config(o, "embed_workers", "embed_worker"),
            r"unknown configuration key 'cluster.embed_worker'; did you mean"),
    Mistake("label that no group has", lambda o: of_config(o, "pool=train", "pool=gpu"),
            r"cluster.train_nodes: no worker group has pool=gpu"),
    Mistake("more data workers than CPUs",
            lambda o: of_config(o, "data_workers: 2", "data_workers: 9"),
            r"cluster.data_workers: 9 and one .* grow to 4 CPUs"),
    Mistake("more training than fits", lambda o: of_config(o, "train_cpus: 2", "train_cpus: 3"),
            r"cluster.train_workers: 1 with 3 CPUs each, but the groups grow to places for 0"),
]  # fmt: skip
