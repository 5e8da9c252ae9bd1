"""A Ray Tune `Tuner` that can be restored, for searches and for comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from dpmpp_core.config import ClusterConfig
from dpmpp_core.errors import DataError
from dpmpp_core.redaction import redact
from pipelines.runtime.resources import parse_labels
from pipelines.runtime.storage import Storage

TRIAL_CPUS = 0.1  # the trial itself only waits for the workers that it starts


class Observer(tune.Callback):
    """Pass trials to this process; stateless, since Tune stores its callbacks pickled."""

    watch: Callable[[Sequence[Trial]], None] | None = None  # of the class

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Call `watch` with all trials."""
        if Observer.watch is not None:
            Observer.watch(trials)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Call `watch` a last time."""
        if all(trial.is_finished() for trial in trials):  # Tune ends all at Ctrl-C
            self.on_step_end(0, trials)


def build_tuner(
    storage: Storage,
    key: str,
    trainable: Callable[..., Any],
    cluster: ClusterConfig,
    tune_config: tune.TuneConfig,
    param_space: dict[str, Any] | None = None,
    stop: dict[str, Any] | None = None,
) -> tune.Tuner:
    """Return a Tuner whose state is stored under `key`, restored where there is one.

    The state is pickled, so this trusts the storage as Ray itself does. A restored Tuner keeps
    its first configurations; only the trainable is the given one.
    """
    path, filesystem = storage.path(key), None if storage.is_local else storage.filesystem
    placed = tune.with_resources(trainable, trial_resources(cluster))
    if tune.Tuner.can_restore(path, storage_filesystem=filesystem):
        try:
            return tune.Tuner.restore(path, placed, storage_filesystem=filesystem)
        except Exception as error:  # pickled: anything can be wrong with it
            raise DataError(
                f"{storage.location(key)} cannot be restored ({type(error).__name__}): delete it, "
                "and the same command starts the search again, from its finished stages"
            ) from error
    folder, _, name = path.rpartition("/")
    return tune.Tuner(
        placed,
        param_space=param_space,
        tune_config=tune_config,
        run_config=tune.RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=filesystem,
            callbacks=[Observer()],
            failure_config=tune.FailureConfig(max_failures=0),
            stop=stop,
            verbose=0,
        ),
    )


def run_tuner(tuner: tune.Tuner, watch: Callable[[Sequence[Trial]], None]) -> None:
    """Run the trials of a Tuner to their end, or to Ctrl-C, which Tune answers by returning.

    Args:
        tuner: From `build_tuner`.
        watch: Called with all trials, several times a second.
    """
    Observer.watch = watch
    try:
        tuner.fit()
    finally:
        Observer.watch = None


def trial_resources(config: ClusterConfig) -> tune.PlacementGroupFactory:
    """Return the resources of a trial's own process.

    They are taken from data nodes, so that train workers can use whole nodes.
    """
    labels = parse_labels(config.data_nodes)
    where: dict[str, Any] = {"bundle_label_selector": [labels]} if labels else {}
    return tune.PlacementGroupFactory([{"CPU": TRIAL_CPUS}], **where)


def failure_reason(trial: Trial) -> str:
    """Return why a trial failed, in one line; empty unless it failed."""
    if trial.status != Trial.ERROR:
        return ""
    file = Path(trial.error_file or "")  # on this machine, and in the storage a little later
    text = file.read_text() if file.is_file() else str(trial.get_error() or "")
    lines = [line.strip() for line in redact(text).splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no reason was recorded"
