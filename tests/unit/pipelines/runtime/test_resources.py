"""Dividing a machine or cluster."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune import PlacementGroupFactory

from dpmpp_core.config import ClusterConfig
from dpmpp_core.errors import ConfigError
from pipelines.runtime.resources import (
    LOG_LEVEL_LINE,
    connect,
    drop_stderr_lines,
    plan_resources,
    plan_trials,
    shorten_temporary_folder,
)
from pipelines.runtime.tuner import trial_resources


def test_a_long_folder_for_temporary_files_is_not_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/short")
    shorten_temporary_folder()
    assert "RAY_TMPDIR" not in os.environ
    monkeypatch.setenv("TMPDIR", "/scratch/slurm/job-1234567/" + "x" * 40)
    shorten_temporary_folder()
    assert os.environ["RAY_TMPDIR"] == "/tmp"
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/" + "x" * 60)
    with pytest.raises(ConfigError, match=r"RAY_TMPDIR=/scratch/x+ is longer than the 37"):
        shorten_temporary_folder()


def test_a_laptop_trains_on_all_its_cores_and_makes_data_beside() -> None:
    made = plan_resources(cpus=2, gpus=0, config=ClusterConfig(), shared=True)
    assert (made.train_workers, made.train_cpus, made.data_workers) == (1, 2, 1)
    assert not made.train_gpu


@given(cpus=st.integers(1, 512), gpus=st.integers(0, 16), workers=st.integers(1, 32))
def test_a_cluster_is_never_promised_more_than_it_has(cpus: int, gpus: int, workers: int) -> None:
    config = ClusterConfig(train_workers=workers)
    try:
        made = plan_resources(cpus, gpus, config, shared=False)
    except ConfigError:
        return
    assert made.train_workers * made.train_cpus + made.data_workers + 1 <= cpus
    assert not made.train_gpu or made.train_workers <= gpus
    assert min(made.train_cpus, made.data_workers, made.embed_workers) >= 1


def test_too_few_gpus_are_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"train_workers 4 .* has 2"):
        plan_resources(64, 2, ClusterConfig(train_workers=4), shared=False)


def test_too_few_cpus_are_refused_with_the_arithmetic() -> None:
    config = ClusterConfig(train_workers=4, data_workers=4, gpu=False)
    with pytest.raises(ConfigError, match=r"6 CPUs - 4 data workers - 1 = 1"):
        plan_resources(6, 0, config, shared=False)


@given(
    nodes=st.lists(st.integers(1, 64), min_size=1, max_size=8),
    workers=st.integers(1, 8),
)
def test_train_workers_fit_on_the_nodes(nodes: list[int], workers: int) -> None:
    config = ClusterConfig(train_workers=workers, gpu=False)
    try:
        made = plan_resources(sum(nodes), 0, config, False, nodes)
    except ConfigError:
        return
    assert sum(node // made.train_cpus for node in nodes) >= workers


def test_nodes_that_come_when_asked_for_are_planned_as_told() -> None:
    told = {"autoscaled": True, "train_cpus": 6, "data_workers": 40, "embed_workers": 44}
    labels = {"train_nodes": ("pool=train",), "data_nodes": ("pool=data",)}
    config = ClusterConfig(train_workers=4, gpu=True, **told, **labels)
    made = plan_resources(cpus=0, gpus=0, config=config, shared=False)
    assert (made.train_workers, made.train_cpus, made.train_gpu) == (4, 6, True)
    assert (made.data_workers, made.embed_workers) == (40, 44)
    assert made.embed_nodes == ("pool=train",)  # where the GPUs are
    on_cpus = plan_resources(0, 0, config.model_copy(update={"gpu": False}), shared=False)
    assert on_cpus.embed_nodes == ("pool=data",)


def test_nodes_that_come_when_asked_for_need_every_size() -> None:
    with pytest.raises(ValueError, match="autoscaled needs a value for embed_workers, gpu"):
        ClusterConfig(autoscaled=True, train_cpus=2, data_workers=2)


def test_a_trial_leaves_room_for_its_own_process_where_sizes_are_told() -> None:
    told = {"autoscaled": True, "train_cpus": 2, "data_workers": 2, "embed_workers": 3}
    config = ClusterConfig(train_workers=1, gpu=False, **told)
    whole = plan_resources(cpus=6, gpus=0, config=config, shared=False)
    made = plan_trials(whole, 60, 0, config, shared=False)
    assert (made.trials, made.embed_workers) == (1, 2)
    assert made.train_cpus == 1  # the trial's process may be where the only train worker is to be
    labelled = config.model_copy(update={"data_nodes": ("pool=data",)})
    assert plan_trials(whole, 6, 0, labelled, shared=False).train_cpus == 2
    assert trial_resources(labelled) == PlacementGroupFactory(
        [{"CPU": 0.1}], bundle_label_selector=[{"pool": "data"}]
    )
    grown = labelled.model_copy(update={"autoscaled": False, "embed_workers": None})
    assert plan_trials(whole, 60, 0, grown, shared=False).trials > 1
    assert trial_resources(config) == PlacementGroupFactory([{"CPU": 0.1}])


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"--address 127.0.0.1:{port}: no Ray cluster answers"):
        connect(f"127.0.0.1:{port}", ClusterConfig())


def test_the_old_ray_train_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "0")
    with pytest.raises(ConfigError, match="needs Ray Train V2"):
        connect(None, ClusterConfig())


def test_what_ray_says_of_its_log_level_is_dropped_and_nothing_else(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KeyboardInterrupt), drop_stderr_lines(LOG_LEVEL_LINE):
        os.write(2, b"[I 1] logging.cc: " + LOG_LEVEL_LINE + b" to 3\nanother line\n")
        raise KeyboardInterrupt
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "another line\nafterwards\n"


def test_a_ray_that_starts_too_late_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr("pipelines.runtime.resources.ray.init", late)
    monkeypatch.setattr("pipelines.runtime.resources.ray.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match="the machine is too busy"):
        connect(None, ClusterConfig())
