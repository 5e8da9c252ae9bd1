"""Connect to Ray, and divide the machine or cluster among training, data and inference."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from dpmpp_core.config import ClusterConfig
from dpmpp_core.errors import ConfigError
from dpmpp_core.redaction import redact

log = logging.getLogger(__name__)

# A worker that dies just after it reported must not lose its checkpoint: Ray registers reports
# when it polls, every 2 s by default.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait for each other must not burn their cores
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # ours are in `progress`
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new one greets even where it was told to be quiet
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a failed trial is logged with its reason
}

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
# Seconds that a worker group may wait for its CPUs and GPUs. One of any size is sized by what Ray
# knew up to a second before a node was lost, and asks again only after this time.
START_SECONDS = "300"
ELASTIC_START_SECONDS = "20"
AUTOSCALED_SECONDS = "1800"  # what a cloud may need to bring a node, and more
PROGRESS_TIMEOUT = "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S"

IN_FLIGHT = 8  # blocks
INLINE_EMBED_MAX_IMAGES = (
    1000  # images that one process has embedded when workers would just have started
)

TRIAL_BYTES = 5 * 2**30  # memory of the processes of a trial of the demo's size, measured


@dataclass(frozen=True)
class Plan:
    """Who gets what, in Ray's logical CPUs and GPUs.

    Attributes:
        train_workers: processes of one training run, at most.
        train_cpus: CPUs, and so torch threads, of each.
        train_gpu: whether each has a GPU.
        data_workers: processes that make training batches.
        embed_workers: processes that embed images, one CPU each.
        trials: pipelines side by side, each with all of the above to itself.
        embed_nodes: labels of the nodes that embed images.
        here: images up to which they are embedded by the process that asks, without workers.
    """

    train_workers: int
    train_cpus: int
    train_gpu: bool
    data_workers: int
    embed_workers: int
    trials: int = 1
    embed_nodes: tuple[str, ...] = ()
    here: int = 0

    def __str__(self) -> str:
        device = "1 GPU, " if self.train_gpu else ""
        side_by_side = f"{self.trials} trials at a time, each: " if self.trials > 1 else ""
        return (
            f"{side_by_side}{self.train_workers} train worker(s) x {device}{self.train_cpus} CPU, "
            f"{self.data_workers} data worker(s), {self.embed_workers} embedding worker(s)"
        )


def plan(
    cpus: int, gpus: int, config: ClusterConfig, shared: bool, nodes: Sequence[int] = ()
) -> Plan:
    """Divide `cpus` and `gpus`.

    Args:
        cpus, gpus: what there is, real ones.
        shared: one machine for all (local Ray). Data workers then use the CPUs that training also
            uses, as they mostly wait; on a cluster they get CPUs of their own.
        nodes: CPUs of each node that may train, as a worker must fit on one; empty = one machine.

    Raises:
        ConfigError: more train workers than GPUs, or than CPUs left; shows the arithmetic.
    """
    if config.autoscaled and not shared:
        return _plan_from_config(config)
    use_gpu = config.gpu if config.gpu is not None else gpus > 0
    workers, fewest = config.train_workers, config.worker_counts[0]
    if use_gpu and fewest > gpus:
        raise ConfigError(
            f"cluster.train_workers {fewest} with GPUs, but the cluster has {gpus}: lower it or "
            "set cluster.gpu=false"
        )
    data = config.data_workers or max(1, cpus // 2 if shared or use_gpu else cpus // 4)
    left = cpus if shared else cpus - data - 1  # 1 for Ray Data's own reading tasks
    if left < fewest:
        raise ConfigError(
            f"cluster.train_workers {fewest} need a CPU each, but {cpus} CPUs - {data} data "
            f"workers - 1 = {left}: lower cluster.train_workers or cluster.data_workers"
        )
    if nodes and sum(nodes) < fewest:
        raise ConfigError(
            f"cluster.train_workers {fewest} need a CPU each, but the nodes that may train have "
            f"{sum(nodes)}: lower cluster.train_workers or change cluster.train_nodes"
        )
    train_cpus = config.train_cpus or (
        1 if use_gpu and not shared else _max_cpus_per_worker(workers, left // workers, nodes)
    )
    embed = config.embed_workers or max(1, cpus if shared else left)
    nodes_told = _embed_nodes(config, use_gpu)
    here = (
        INLINE_EMBED_MAX_IMAGES if shared and not use_gpu else 0
    )  # elsewhere this process may lack the means
    return Plan(workers, train_cpus, use_gpu, data, embed, embed_nodes=nodes_told, here=here)


def _plan_from_config(config: ClusterConfig) -> Plan:
    """The sizes of the configuration, which has them all, whatever nodes there are."""
    data, embed, cpus = config.data_workers, config.embed_workers, config.train_cpus
    assert data and embed and cpus and config.gpu is not None
    nodes = _embed_nodes(config, config.gpu)
    return Plan(config.train_workers, cpus, config.gpu, data, embed, embed_nodes=nodes)


def _embed_nodes(config: ClusterConfig, gpu: bool) -> tuple[str, ...]:
    """Images are embedded where the GPUs are, or else where they are read."""
    return config.train_nodes if gpu else config.data_nodes


def _max_cpus_per_worker(workers: int, cpus: int, nodes: Sequence[int]) -> int:
    """The most CPUs, at most `cpus` each, with which so many workers fit on the nodes."""
    while nodes and cpus > 1 and sum(node // cpus for node in nodes) < workers:
        cpus -= 1
    return max(1, cpus)


def plan_trials(
    whole: Plan,
    cpus: int,
    gpus: int,
    config: ClusterConfig,
    shared: bool,
    nodes: Sequence[int] = (),
) -> Plan:
    """Divide the same machine or cluster among pipelines that run side by side.

    A CPU of its own for each train worker is worth more than threads, so there are as many trials
    as that allows, or as there are GPUs for; on a cluster each also has CPUs for its data workers.

    Args:
        whole: what a single pipeline gets.

    Raises:
        ConfigError: as `plan`.
    """
    workers = config.train_workers
    if shared:
        trials = min(cpus // workers, _memory() // TRIAL_BYTES)
    else:
        trials = cpus // (workers + (config.data_workers or 1) + 2)
    if whole.train_gpu:
        trials = min(trials, gpus // workers)
    if not shared and (trials < 2 or config.autoscaled):
        # The trial's own process takes a little of a CPU. With that much too little left, Ray
        # Data's reading tasks would wait for ever, and train workers too where it may be on their
        # node.
        train = whole.train_cpus if config.data_nodes else max(1, whole.train_cpus - 1)
        return replace(whole, train_cpus=train, embed_workers=max(1, whole.embed_workers - 1))
    if trials < 2:
        return whole
    share = plan(cpus // trials, gpus // trials, config, shared, nodes)
    return replace(share, trials=trials)


def _memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def connect(address: str | None, config: ClusterConfig) -> tuple[Plan, Plan]:
    """Start a local Ray sized to this machine, or join the cluster at `address`; plan its use.

    Returns:
        the plan of one pipeline, and that of one of many side by side.

    Raises:
        ConfigError: no cluster at `address`, or it is too small.
    """
    elastic = config.worker_counts[0] < config.train_workers
    start = ELASTIC_START_SECONDS if elastic else START_SECONDS
    waits = {START_TIMEOUT: start, PROGRESS_TIMEOUT: "600"}
    if config.autoscaled:
        waits = dict.fromkeys(waits, AUTOSCALED_SECONDS)
    for name, value in {**ENVIRONMENT, **waits}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)  # trials without results
    # Says at every start that tokens are on, which is as it should be.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    plans = _start_local(config) if address is None else _join(address, config)
    context = ray.data.DataContext.get_current()
    throttle(context)
    context.execution_options.label_selector = selector(config.data_nodes) or None
    log.info("Ray: %s", plans[0])
    return plans


class Throttle:
    """Keeps Ray Data's scheduling loop from spinning.

    The loop waits for tasks, but while finished tasks are held back for want of room downstream it
    returns at once, over and over: 60 % of a core, taken from training. 50 rounds a second are
    plenty, as a round handles everything that is ready.
    """

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(0.02)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


def throttle(context: ray.data.DataContext) -> None:
    """Set `Throttle` for the data sets made under this context."""
    if Throttle not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Throttle)  # type: ignore[arg-type]


def pool(size: int) -> ActorPoolStrategy:
    """So many data workers, each with its next blocks at hand.

    Ray Data hands out work every tenth of a second; a worker whose blocks take less must have more
    than one, or it idles.
    """
    return ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=IN_FLIGHT)


def _start_local(config: ClusterConfig) -> tuple[Plan, Plan]:
    import torch

    cpus, gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count()
    result = plan(cpus, gpus, config, shared=True)
    # Logical CPUs beyond the real ones, so that training, its data workers and Ray Data's own
    # tasks can all be placed at once. A trial waits beside what it starts.
    trials = plan_trials(result, cpus, gpus, config, shared=True)
    logical = max(_logical(result), trials.trials * (_logical(trials) + 1))
    # Ray's C++ parts log to the terminal what is no error for us; their log files keep the rest.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if ray.is_initialized():  # an embedding program or a test session started it
        return result, trials
    ray.init(
        address="local",
        num_cpus=logical,
        log_to_driver=False,  # workers tell what matters through the progress board
        logging_level=logging.WARNING,
    )
    return result, trials


def _logical(plan: Plan) -> int:
    """CPUs that one pipeline asks for at most at a time; 2 for Ray Data's own tasks."""
    return max(plan.train_workers * plan.train_cpus + plan.data_workers, plan.embed_workers) + 2


def _join(address: str, config: ClusterConfig) -> tuple[Plan, Plan]:
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": ENVIRONMENT},
            log_to_driver=False,
            logging_level=logging.WARNING,
            ignore_reinit_error=True,
        )
    except (ConnectionError, ValueError) as error:
        problem = " ".join(redact(str(error)).split())[:300]
        raise ConfigError(f"--address {address}: no Ray cluster answers: {problem}") from None
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if config.autoscaled:
        whole = _plan_from_config(config)
        return whole, plan_trials(whole, cpus, gpus, config, False)
    nodes = _nodes(config.train_nodes, "train_nodes")
    reading = sum(_nodes(config.data_nodes, "data_nodes"))
    whole = plan(cpus, gpus, config, False, nodes)
    whole = replace(whole, embed_workers=min(whole.embed_workers, max(1, reading)))
    return whole, plan_trials(whole, cpus, gpus, config, False, nodes)


def selector(labels: Sequence[str]) -> dict[str, str]:
    """`key=value` labels as Ray takes them."""
    return dict(label.split("=", 1) for label in labels)


def _nodes(labels: Sequence[str], key: str) -> list[int]:
    """CPUs of each living node with the labels; ConfigError if there is none."""
    asked = selector(labels).items()
    alive = [node for node in ray.nodes() if node["Alive"]]
    found = [node for node in alive if asked <= (node.get("Labels") or {}).items()]
    if not found:
        known = sorted(
            {f"{k}={v}" for node in alive for k, v in (node.get("Labels") or {}).items()}
        )
        raise ConfigError(
            f"cluster.{key}: no node of the cluster has {' and '.join(labels)}; there are "
            f"{', '.join(known) or 'none'}"
        )
    return [int(node["Resources"].get("CPU", 0)) for node in found]
