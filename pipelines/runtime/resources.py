"""Connect to Ray, and divide the machine or cluster among training, data and inference."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from dpmpp_core.config import ClusterConfig
from dpmpp_core.errors import ConfigError
from dpmpp_core.redaction import redact
from pipelines.runtime.machine import count_cpus, count_memory_bytes

log = logging.getLogger(__name__)

# A worker that dies just after a report must not lose its checkpoint: Ray registers reports
# when it polls, every 2 s by default.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait for each other must not burn their cores
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # `progress` shows its own
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new output prints a banner even with verbose=0
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a failed trial is logged with its reason
}

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
# Seconds that a worker group may wait for its CPUs and GPUs. An elastic one takes its size from
# what Ray knew up to a second before a node was lost, and is resized only after this time.
START_SECONDS = "300"
ELASTIC_START_SECONDS = "20"
AUTOSCALED_SECONDS = "1800"  # more than a cloud needs to start a node
PROGRESS_TIMEOUT = "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S"

CONNECT_SECONDS = 15.0
LOG_LEVEL_LINE = b"Set ray log level from environment variable"
BLOCKS_IN_FLIGHT = 8  # per data worker
# A socket has a name of 107 bytes at most, of which Ray's own folders take up to 70.
MAX_TEMPORARY_CHARS = 37
# Starting workers takes as long as embedding so many images in this process.
INLINE_EMBED_MAX_IMAGES = 1000
TRIAL_BYTES = 5 * 2**30  # memory of the processes of a trial of the demo's size, measured


@dataclass(frozen=True)
class Plan:
    """How Ray's logical CPUs and GPUs are divided.

    Attributes:
        train_workers: Maximum number of processes of one training run.
        train_cpus: CPUs, and so torch threads, of each.
        train_gpu: Whether each has a GPU.
        data_workers: Processes that make training batches.
        embed_workers: Processes that embed images, one CPU each.
        trials: Concurrent pipelines, each with all of the above to itself.
        embed_nodes: Labels of the nodes that embed images.
        inline_embed_max_images: Up to so many images are embedded by the calling process.
    """

    train_workers: int
    train_cpus: int
    train_gpu: bool
    data_workers: int
    embed_workers: int
    trials: int = 1
    embed_nodes: tuple[str, ...] = ()
    inline_embed_max_images: int = 0

    def __str__(self) -> str:
        device = "1 GPU, " if self.train_gpu else ""
        trials = f"{self.trials} trials at a time, each: " if self.trials > 1 else ""
        embed = f"{self.embed_workers} embedding worker(s)"
        if self.train_gpu:
            embed = f"{self.train_workers} embedding worker(s) x {device}"[:-2]
        return (
            f"{trials}{self.train_workers} train worker(s) x {device}{self.train_cpus} CPU, "
            f"{self.data_workers} data worker(s), {embed}"
        )


def plan_resources(
    cpus: int, gpus: int, config: ClusterConfig, shared: bool, nodes: Sequence[int] = ()
) -> Plan:
    """Divide the physical `cpus` and `gpus` of a machine or cluster.

    Args:
        cpus: Number of CPUs.
        gpus: Number of GPUs.
        config: Sizes given by the user.
        shared: Whether one machine runs everything (local Ray). Data workers then use the CPUs of
            training too, as they mostly wait; on a cluster they get CPUs of their own.
        nodes: CPUs of each node that may train, as a worker must fit on one; empty = one machine.

    Raises:
        ConfigError: There are more train workers than GPUs, or than CPUs left.
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
    return Plan(
        train_workers=workers,
        train_cpus=train_cpus,
        train_gpu=use_gpu,
        data_workers=data,
        embed_workers=config.embed_workers or max(1, cpus if shared else left),
        embed_nodes=_embed_nodes(config, use_gpu),
        # A cluster's driver may have neither GPU nor CPUs.
        inline_embed_max_images=INLINE_EMBED_MAX_IMAGES if shared and not use_gpu else 0,
    )


def _plan_from_config(config: ClusterConfig) -> Plan:
    """Return the sizes of an autoscaled cluster, all of which the configuration gives."""
    data, embed, cpus = config.data_workers, config.embed_workers, config.train_cpus
    assert data and embed and cpus and config.gpu is not None
    nodes = _embed_nodes(config, config.gpu)
    return Plan(config.train_workers, cpus, config.gpu, data, embed, embed_nodes=nodes)


def _embed_nodes(config: ClusterConfig, gpu: bool) -> tuple[str, ...]:
    return config.train_nodes if gpu else config.data_nodes  # GPUs embed, or who reads images


def _max_cpus_per_worker(workers: int, cpus: int, nodes: Sequence[int]) -> int:
    """Return the largest number up to `cpus` with which so many workers fit on the nodes."""
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
    """Divide the same machine or cluster among concurrent pipelines.

    One CPU per train worker is worth more than threads, so there are as many trials as that
    allows, or as there are GPUs for. On a cluster each trial also has CPUs for its data workers.
    `whole` is what a single pipeline gets; other arguments and errors are of `plan_resources`.
    """
    workers = config.train_workers
    if shared:
        trials = min(cpus // workers, count_memory_bytes() // TRIAL_BYTES)
    else:
        trials = cpus // (workers + (config.data_workers or 1) + 2)
    if whole.train_gpu:
        trials = min(trials, gpus // workers)
    if not shared and (trials < 2 or config.autoscaled):
        # The trial's own process takes a part of a CPU. Without it Ray Data's reading tasks would
        # wait for ever, and so would train workers where the trial may be placed on their node.
        train = whole.train_cpus if config.data_nodes else max(1, whole.train_cpus - 1)
        return replace(whole, train_cpus=train, embed_workers=max(1, whole.embed_workers - 1))
    if trials < 2:
        return whole
    share = plan_resources(cpus // trials, gpus // trials, config, shared, nodes)
    return replace(share, trials=trials)


def connect(address: str | None, config: ClusterConfig) -> tuple[Plan, Plan]:
    """Start a local Ray sized to this machine, or join the cluster at `address`; plan its use.

    Returns:
        The plan of a single pipeline, and the plan of each of several concurrent ones.

    Raises:
        ConfigError: There is no cluster at `address`, or it is too small.
    """
    _check_environment()
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
    # It logs at every start that tokens are enabled, which is intended.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    plans = _start_local(config) if address is None else _join(address, config)
    set_up_data(ray.data.DataContext.get_current(), config.data_nodes)
    log.info("Ray: %s", plans[0])
    return plans


def _check_environment() -> None:
    if os.environ.get("RAY_TRAIN_V2_ENABLED", "1").lower() in ("0", "false"):
        raise ConfigError("RAY_TRAIN_V2_ENABLED=0: training needs Ray Train V2; unset it")


class Throttle:
    """Execution callback that limits Ray Data's scheduling loop to 50 iterations per second.

    While finished tasks wait for free buffers downstream, the loop spins and takes 60 % of a core
    from training. Each iteration handles everything that is ready, so 50 are enough.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Delay the next iteration."""
        time.sleep(0.02)

    def _ignore(self, executor: Any, error: Exception | None = None) -> None: ...

    before_execution_starts = after_execution_succeeds = after_execution_fails = _ignore


def set_up_data(context: ray.data.DataContext, nodes: Sequence[str]) -> None:
    """Set `Throttle` and the labels of nodes for the data sets created under this context.

    Each process that creates data sets calls it: Ray hands the context to no other process.
    """
    if Throttle not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Throttle)  # type: ignore[arg-type]
    context.execution_options.label_selector = parse_labels(nodes) or None


def create_pool(size: int) -> ActorPoolStrategy:
    """Return a pool of `size` data workers, each with a queue of blocks.

    Ray Data assigns work every tenth of a second. A worker whose blocks take less idles unless it
    has several.
    """
    return ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=BLOCKS_IN_FLIGHT)


def _start_local(config: ClusterConfig) -> tuple[Plan, Plan]:
    from pipelines.runtime.device import count_usable_gpus  # loads torch

    cpus, gpus = count_cpus(), count_usable_gpus(config.gpu)
    result = plan_resources(cpus, gpus, config, shared=True)
    # There are more logical CPUs than physical ones, so that training, its data workers and Ray
    # Data's own tasks can all be placed at once. A trial's process waits for what it starts.
    trials = plan_trials(result, cpus, gpus, config, shared=True)
    logical = max(_logical_cpus(result), trials.trials * (_logical_cpus(trials) + 1))
    # Ray's C++ processes print harmless errors to the terminal; their log files keep all of them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if ray.is_initialized():  # an embedding program or a test session started it
        return result, trials
    shorten_temporary_folder()
    # Each training would start a process that waits for nodes to be taken away.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    try:
        with drop_stderr_lines(LOG_LEVEL_LINE):
            ray.init(
                address="local",
                num_cpus=logical,
                include_dashboard=False,  # while this program runs, it shows its own progress
                log_to_driver=False,  # workers report what matters through the `TrainingMonitor`
                logging_level=logging.WARNING,
            )
    except Exception as error:  # a bare one
        if "timed out during startup" not in str(error):
            raise
        raise ConfigError(
            "Ray's processes did not start in time: the machine is too busy; start again when "
            "less runs on it"
        ) from error
    return result, trials


@contextmanager
def drop_stderr_lines(text: bytes) -> Iterator[None]:
    """Hold back what the process writes to stderr, C++ included; write it without lines of `text`.

    Ray announces a log level that it takes from the environment, at every level.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            os.write(2, b"".join(line for line in held if text not in line))


def shorten_temporary_folder() -> None:
    """Let Ray use /tmp where TMPDIR, as Slurm sets it, is too long for the names of its sockets.

    Raises:
        ConfigError: RAY_TMPDIR itself is too long.
    """
    given = os.environ.get("RAY_TMPDIR")
    if given is not None and len(given) > MAX_TEMPORARY_CHARS:
        raise ConfigError(
            f"RAY_TMPDIR={given} is longer than the {MAX_TEMPORARY_CHARS} characters that the "
            "names of sockets leave: name a shorter folder, as /tmp"
        )
    if given is None and len(os.environ.get("TMPDIR", "")) > MAX_TEMPORARY_CHARS:
        log.info("Ray: TMPDIR is too long for the names of sockets, so its files are in /tmp")
        os.environ["RAY_TMPDIR"] = "/tmp"


def _logical_cpus(plan: Plan) -> int:
    """Return the most CPUs that one pipeline requests at a time; 2 are for Ray Data's own tasks."""
    return max(plan.train_workers * plan.train_cpus + plan.data_workers, plan.embed_workers) + 2


def _join(address: str, config: ClusterConfig) -> tuple[Plan, Plan]:
    _check_reachable(address)
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
        hint = "a cluster with tokens needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        raise ConfigError(
            f"--address {address}: no Ray cluster answers: {problem}; {hint}"
        ) from None
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if config.autoscaled:
        whole = _plan_from_config(config)
        return whole, plan_trials(whole, cpus, gpus, config, False)
    nodes = _nodes(config.train_nodes, "train_nodes")
    reading = sum(_nodes(config.data_nodes, "data_nodes"))
    whole = plan_resources(cpus, gpus, config, False, nodes)
    whole = replace(whole, embed_workers=min(whole.embed_workers, max(1, reading)))
    return whole, plan_trials(whole, cpus, gpus, config, False, nodes)


def _check_reachable(address: str) -> None:
    """Raise ConfigError if nothing listens at HOST:PORT, for which Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return  # `auto`, or what only Ray understands
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--address {address}: no Ray cluster answers: {error}") from None


def parse_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return `key=value` labels as a label selector of Ray."""
    return dict(label.split("=", 1) for label in labels)


def _nodes(labels: Sequence[str], key: str) -> list[int]:
    """Return the CPUs of each living node with the labels; raise ConfigError if there is none."""
    required = parse_labels(labels).items()
    alive = [(node, node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]]
    matching = [node for node, own in alive if required <= own.items()]
    if not matching:
        known = sorted({f"{key}={value}" for _, own in alive for key, value in own.items()})
        raise ConfigError(
            f"cluster.{key}: no node of the cluster has {' and '.join(labels)}; there are "
            f"{', '.join(known) or 'none'}"
        )
    return [int(node["Resources"].get("CPU", 0)) for node in matching]
