"""How stage 2 updates: its passes, what they step, what it watches, what no GPU waits for."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dpmpp_core.config import load_config
from dpmpp_core.errors import ConfigError
from dpmpp_core.models import distributed
from dpmpp_core.retrieval import masked_similarity
from dpmpp_core.tasks.step import train_step
from tests.support.kernels import CountKernels
from tests.support.tasks import awake, metric_batch, metric_task, prompt_task, total

ALTERNATING = ("metric.update=alternating", "metric.loss.triplet=1")


def state(task):
    return {name: tensor.clone() for name, tensor in task.state_dict().items()}


def moved(task, before):
    names = {name for name, _ in task.named_parameters()}
    return {n for n, t in task.state_dict().items() if n in names and not torch.equal(t, before[n])}


def test_joint_is_one_pass_and_alternating_two():
    assert metric_task().phases == ("joint",) and metric_task().updates_all
    assert metric_task(*ALTERNATING).phases == ("model", "mask")
    assert not metric_task(*ALTERNATING).updates_all
    assert not metric_task("metric.loss.masked=0").updates_all
    assert prompt_task().phases == ("joint",) and prompt_task().updates_all


def test_each_pass_steps_its_own_parameters():
    task = awake(metric_task(*ALTERNATING))
    optimiser, batch = task.optimiser(), metric_batch()
    generator = {n for n, _ in task.named_parameters() if n.startswith("model.mask_generator.")}
    others = {n for n, p in task.named_parameters() if p.requires_grad} - generator
    for phase, steps in (("model", others), ("mask", generator)):
        before = state(task)
        losses, _ = task(batch, phase)
        optimiser.zero_grad()
        total(losses).backward()
        task.filter_gradients(phase)
        optimiser.step()
        assert moved(task, before) == steps
    assert set(losses) == {"masked_visual", "masked_joint"}


def test_the_mask_pass_has_the_generator_s_gradient_of_the_masked_losses():
    task, batch = awake(metric_task(*ALTERNATING, "metric.mask_grad_clip=1e9")), metric_batch()
    whole = copy.deepcopy(task)
    losses, _ = whole(batch, "joint")
    (losses["masked_visual"] + losses["masked_joint"]).backward()
    total(task(batch, "mask")[0]).backward()
    task.filter_gradients("mask")
    expected = dict(whole.model.mask_generator.named_parameters())
    for name, parameter in task.model.mask_generator.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad)
    assert all(p.grad is None for p in task.model.encoder.parameters())


@pytest.mark.parametrize("update", ["joint", "alternating"])
def test_a_resumed_training_is_the_unbroken_one(update):
    def started():
        task = awake(metric_task(f"metric.update={update}"))
        return task, task.optimiser()

    def step(task, optimiser, number):
        return train_step(task, task, optimiser, metric_batch(number % 2 == 0), number)

    unbroken, optimiser = started()
    for number in range(4):
        figures = step(unbroken, optimiser, number)
    broken, optimiser = started()
    for number in range(2):
        step(broken, optimiser, number)
    file = io.BytesIO()
    torch.save({"task": broken.trained_state(), "optimiser": optimiser.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, optimiser = started()
    resumed.load_trained_state(saved["task"])
    optimiser.load_state_dict(saved["optimiser"])
    for number in range(2, 4):
        again = step(resumed, optimiser, number)
    assert all(torch.equal(figures[name], again[name]) for name in figures)
    assert moved(resumed, state(unbroken)) == set()


def test_updates_that_cannot_learn_are_refused():
    paper = ["model.bands=0", "model.mask_generator=light"]
    off = [*paper, "metric.loss.masked=0", "metric.update=alternating"]
    with pytest.raises(ConfigError, match=r"alternating needs loss\.masked"):
        load_config("demo", off)
    assert load_config("demo", [*off, "metric.loss.visibility=1"])
    nothing = [f"metric.loss.{name}=0" for name in ("masked", "identity", "triplet", "text")]
    with pytest.raises(ConfigError, match="weight above 0"):
        load_config("demo", nothing)


# --- alarms -------------------------------------------------------------------------------------


def figures(visual, joint):
    return {"mask_visual_std_samples": visual, "mask_joint_std_samples": joint, "loss": 1.0}


def test_a_mask_that_is_dead_late_in_training_is_an_alarm():
    task = metric_task("metric.epochs=20", "metric.warmup_epochs=2")
    late = task.alarms(11, figures(0.004, 0.02))
    assert list(late) == ["dead_mask_visual"]
    assert "visual space" in late["dead_mask_visual"] and "0.0040" in late["dead_mask_visual"]
    assert task.alarms(10, figures(0.004, 0.004)) == {}
    assert task.alarms(20, figures(0.01, 0.01)) == {}
    slow = metric_task("metric.epochs=20", "metric.warmup_epochs=15")
    assert slow.alarms(15, figures(0, 0)) == {} and len(slow.alarms(16, figures(0, 0))) == 2
    untrained = metric_task("metric.epochs=20", "metric.loss.masked=0")
    assert untrained.alarms(20, figures(0, 0)) == {} == prompt_task().alarms(99, {"loss": 1.0})


# --- host and device ----------------------------------------------------------------------------


def test_a_step_never_asks_the_device_for_a_value():
    """Tensors without values refuse every question that would make a GPU wait for the host."""
    task = metric_task("metric.loss.triplet=1").train()
    state = dict(itertools.chain(task.named_parameters(), task.named_buffers()))
    mode = FakeTensorMode()
    state, batch = (
        {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
        for tensors in (state, metric_batch())
    )
    with mode:
        losses, _ = torch.func.functional_call(task, state, (batch,))
        total(losses).backward()
        with pytest.raises(DataDependentOutputException):  # as the public function's checks do
            masked_similarity(torch.rand(2, 4), torch.rand(2, 4), torch.rand(3, 4))


def test_workers_exchange_numbers_once_and_readings_once(monkeypatch):
    """As seen by the first of two workers, whose peer has the same batch."""
    exchanged = []

    def gather(local):
        exchanged.append(local.shape)
        return torch.cat([local, local])

    monkeypatch.setattr(distributed, "worker_count", lambda: 2)
    monkeypatch.setattr(distributed, "gather", gather)
    losses, _ = metric_task("metric.loss.triplet=1").train()(metric_batch())
    # Labels and donors; then block 11, features and masks of both spaces, each 192 wide.
    assert exchanged == [(8, 2), (8, 5 * 192)] and losses["triplet"] > 0


def test_constant_masks_are_not_exchanged(monkeypatch):
    exchanged = []
    monkeypatch.setattr(distributed, "worker_count", lambda: 2)
    monkeypatch.setattr(
        distributed, "gather", lambda x: exchanged.append(x.shape) or torch.cat([x, x])
    )
    metric_task("model.mask_generator=none").train()(metric_batch())
    assert exchanged == [(8, 2), (8, 3 * 192)]


def test_losses_of_all_spaces_share_their_kernels():
    """A GPU launches each for a few microseconds of work."""
    task, batch = metric_task("metric.loss.triplet=1").train(), metric_batch()
    with CountKernels() as forward:
        losses, _ = task(batch)
    with CountKernels() as backward:
        total(losses).backward()
    assert forward.names["aten.amin"] == 1  # the triplets of three spaces
    assert forward.names["aten._log_softmax"] <= 4  # masked, identity, text, contrast
    assert forward.count <= 345 and backward.count <= 545  # 329 and 521


def test_where_no_mask_is_made_none_is_watched():
    task = metric_task("model.mask_generator=none", "model.bands=2", "metric.epochs=10")
    assert task.model.masked_spaces == ["bands"]
    assert set(task.alarms(9, {"mask_bands_std_samples": 0.0})) == {"dead_mask_bands"}
    assert not task.alarms(9, {"mask_bands_std_samples": 0.1})


@pytest.mark.long
def test_a_compiled_encoder_gives_the_same_losses_and_gradients(monkeypatch):
    """With the compiler's own graphs and gradients, without the code that it generates for them."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager")
    )
    plain, compiled = metric_task(), metric_task("metric.compile=true")
    compiled.compile_parts()
    batch = metric_batch()
    for task in (plain, compiled):
        total(task.train()(batch)[0]).backward()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    of_plain = dict(plain.named_parameters())
    for name, parameter in compiled.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, of_plain[name].grad, msg=name)
