"""The two stages of training on tiny batches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dpmpp_core.models.reid import start_clip
from dpmpp_core.tasks.metric import compute_mask_figures
from dpmpp_core.tasks.schedule import parameter_group, warmup_cosine, warmup_steps
from tests.support.tasks import (
    CLASSES,
    config,
    metric_batch,
    metric_task,
    prompt_task,
    rng_untouched,
    same_state,
    texts,
    total,
)

# --- stage 2 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("donors", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_metric_losses_are_finite_and_so_are_the_figures(donors, precision):
    task = metric_task(f"metric.precision={precision}", "metric.loss.triplet=1").train()
    losses, report = task(metric_batch(donors))
    assert set(losses) == {
        "heads", "triplet", "text", "text_transfer",
        "identity_visual", "identity_joint", "masked_visual", "masked_joint",
    }  # fmt: skip
    for loss in losses.values():
        assert loss.shape == () and loss.isfinite() and loss >= 0 and loss.requires_grad
    assert all(figure.isfinite() and not figure.requires_grad for figure in report.values())
    assert report["mask_visual_mean"] == 0.5 and report["mask_joint_std_samples"] == 0
    assert 0 <= report["accuracy_joint"] <= 1


def test_donors_touch_the_losses_that_compare_with_other_identities():
    task = metric_task("metric.loss.triplet=1", "metric.loss.triplet_margin=9").eval()
    with torch.no_grad():
        clean, mixed = task(metric_batch(False))[0], task(metric_batch(True))[0]
    changed = {name for name in clean if clean[name] != mixed[name]}
    assert changed == set(clean) - {"heads", "text_transfer"}
    for name in changed:  # fewer rivals never make it harder
        assert mixed[name] < clean[name]


def test_every_trainable_parameter_takes_part_and_starts_to_move():
    task = metric_task("metric.loss.label_smoothing=0").train()
    optimiser, batch = task.optimiser(), metric_batch()
    trainable = {n: p for n, p in task.named_parameters() if p.requires_grad}
    for _ in range(2):  # the mask's trunk gets its first gradient once its zero layers moved
        optimiser.zero_grad()
        total(task(batch)[0]).backward()
        for name, parameter in trainable.items():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        optimiser.step()
    still = [name for name, parameter in trainable.items() if not parameter.grad.any()]
    assert still == []
    frozen = [name for name, p in task.named_parameters() if not p.requires_grad]
    assert frozen == ["model.necks.visual.bias", "model.necks.joint.bias"]


def test_metric_loss_falls_on_one_batch():
    task = metric_task("metric.lr=1e-3", "metric.encoder_lr=3e-4").train()
    optimiser, batch = task.optimiser(), metric_batch()
    course = []
    for _ in range(10):
        losses, report = task(batch)
        course.append(total(losses).item())
        optimiser.zero_grad()
        total(losses).backward()
        task.filter_gradients("joint")
        optimiser.step()
    assert course[-1] < 0.7 * course[0]
    assert report["accuracy_visual"] == 1 and report["mask_visual_std_samples"] > 0


def test_a_loss_weight_scales_its_own_loss_and_zero_leaves_it_out():
    whole, _ = metric_task("metric.loss.triplet=1").eval()(metric_batch())
    for key, names in {
        "identity": ["identity_visual", "identity_joint"],
        "masked": ["masked_visual", "masked_joint"],
        "triplet": ["triplet"],
        "text": ["text"],
        "text_transfer": ["text_transfer"],
        "heads": ["heads"],
    }.items():
        weight = 1.0 if key == "triplet" else getattr(config().metric.loss, key)
        for factor in (2, 0):
            changed = ["metric.loss.triplet=1", f"metric.loss.{key}={factor * weight}"]
            losses, report = metric_task(*changed).eval()(metric_batch())
            expected = {
                name: factor * loss if name in names else loss
                for name, loss in whole.items()
                if factor or name not in names
            }
            assert losses.keys() == expected.keys() and "accuracy_joint" in report
            # Without transfer the joint prototypes do not start from the texts either.
            other = (
                {"identity_joint", "masked_joint"} if key == "text_transfer" and not factor else ()
            )
            for name, loss in losses.items():
                if name not in other:
                    torch.testing.assert_close(loss, expected[name])


def test_metric_task_starts_from_its_seed_and_the_texts_alone():
    task = rng_untouched(metric_task)
    assert same_state(task, metric_task()) and not same_state(task, metric_task("seed=1"))
    centred = nn.functional.normalize(texts() - texts().mean(dim=0), dim=1)
    weight = nn.functional.normalize(task.prototypes.weight["joint"], dim=1)
    torch.testing.assert_close(weight.detach(), centred)
    assert not task.texts.requires_grad


def test_metric_optimiser_holds_each_parameter_once_at_its_rate():
    task = metric_task("metric.bias_lr_factor=2", "metric.encoder_lr=1e-5", "metric.lr=1e-3")
    rates = {id(p): g["lr"] for g in task.optimiser().param_groups for p in g["params"]}
    held = [p for g in task.optimiser().param_groups for p in g["params"]]
    trainable = {n: p for n, p in task.named_parameters() if p.requires_grad}
    assert len(held) == len(rates) == len(trainable)
    for name, parameter in trainable.items():
        expected = 1e-5 if name.startswith("model.encoder.") else 1e-3
        assert rates[id(parameter)] == pytest.approx(expected * (1 + name.endswith("bias"))), name


def test_clipping_bounds_the_mask_generator_alone():
    task = metric_task("metric.mask_grad_clip=0.5")
    for parameter in task.parameters():
        parameter.grad = torch.ones_like(parameter)
    task.filter_gradients("joint")
    norm = torch.stack([p.grad.norm() for p in task.model.mask_generator.parameters()]).norm()
    assert norm == pytest.approx(0.5, rel=1e-3)
    assert all((p.grad == 1).all() for p in task.model.encoder.parameters())


def test_metric_state_goes_round():
    source, other = metric_task("seed=1").train(), metric_task()
    source(metric_batch())  # moves the batch-norm statistics too
    other.load_trained_state({k: v.clone() for k, v in source.trained_state().items()})
    assert same_state(source, other)
    with torch.no_grad():
        a, b = source.eval()(metric_batch())[0], other.eval()(metric_batch())[0]
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_mask_figures_in_closed_form():
    static = compute_mask_figures(torch.tensor([[0.2, 0.6]]).repeat(3, 1))
    assert static["mean"] == pytest.approx(0.4) and static["std_samples"] == pytest.approx(0)
    assert static["std_channels"] == pytest.approx(0.4 / math.sqrt(2))
    assert static["participation"] == pytest.approx(0.64 / (2 * 0.40))
    alive = compute_mask_figures(torch.tensor([[0.1, 0.9], [0.9, 0.1]]))
    assert alive["std_samples"] == pytest.approx(0.8 / math.sqrt(2))
    assert alive["std_channels"] == pytest.approx(0)


# --- stage 1 ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_task():
    return prompt_task()


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 4), st.data())
@settings(max_examples=60, deadline=None)
def test_prompt_batches_hold_every_row_once_an_epoch_and_resume(
    bare_task, rows, size, epochs, data
):
    bare_task.config = config(f"prompts.batch={size}", f"prompts.epochs={epochs}")
    bare_task.host_labels = torch.zeros(rows, dtype=torch.int64)
    per_epoch = bare_task.steps_per_epoch = math.ceil(rows / size)
    bare_task.epochs = epochs
    steps = [batch["rows"].tolist() for batch in bare_task.batches(0)]
    assert len(steps) == epochs * per_epoch
    assert all(0 < len(step) <= size for step in steps)
    orders = []
    for epoch in range(epochs):
        parts = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        orders.append([row for part in parts for row in part])
        assert sorted(orders[-1]) == list(range(rows))
    assert rows < 8 or len({tuple(order) for order in orders}) == epochs
    start = data.draw(st.integers(0, len(steps)))
    assert [batch["rows"].tolist() for batch in bare_task.batches(start)] == steps[start:]


def test_a_short_last_batch_of_prompts_counts_as_a_step():
    rows = len(prompt_task().labels)
    assert prompt_task(f"prompts.batch={rows}").steps_per_epoch == 1
    assert prompt_task(f"prompts.batch={rows - 1}").steps_per_epoch == 2


def test_prompt_batches_differ_between_seeds():
    first, second = (next(prompt_task(f"seed={s}").batches(0))["rows"].tolist() for s in (0, 1))
    assert sorted(first) == sorted(second) and first != second


def test_prompt_contrast_falls_and_only_the_tokens_move():
    task = rng_untouched(lambda: prompt_task("prompts.batch=8", "prompts.epochs=15")).train()
    frozen = {n: p.clone() for n, p in task.named_parameters() if n != "prompts.tokens"}
    optimiser = task.optimiser()
    assert [p is task.prompts.tokens for g in optimiser.param_groups for p in g["params"]] == [True]
    rows = task.batch(torch.arange(12))
    before = total(task(rows)[0]).item()
    for batch in task.batches(0):
        losses, report = task(batch)
        assert set(losses) == {"image_to_text", "text_to_image"} and report == {}
        optimiser.zero_grad()
        total(losses).backward()
        optimiser.step()
    assert total(task(rows)[0]).item() < 0.8 * before
    after = dict(task.named_parameters())
    assert all(torch.equal(after[name], parameter) for name, parameter in frozen.items())


def test_prompt_state_goes_round_and_gives_the_texts():
    source, other = prompt_task("seed=1"), prompt_task("seed=1")
    assert torch.equal(source.prompts.tokens, other.prompts.tokens)
    with torch.no_grad():
        source.prompts.tokens.normal_(generator=torch.Generator().manual_seed(0))
    other.load_trained_state({k: v.clone() for k, v in source.trained_state().items()})
    a, b = source.results(), other.results()
    assert torch.equal(a["texts"], b["texts"]) and torch.equal(a["tokens"], b["tokens"])
    assert a["texts"].shape == (CLASSES, 192)
    torch.testing.assert_close(a["texts"].norm(dim=1), torch.ones(CLASSES))
    learned = start_clip(config()).logit_scale.exp().item()
    assert a["scale"] == pytest.approx(learned, rel=1e-5) and learned > 1 / 0.07


def test_prompts_of_clip_are_compared_as_they_are():
    task = prompt_task("model.normalise_text=false")
    results = task.results()
    assert results["scale"] == 1.0
    assert task.features.norm(dim=1).min() > 5
    assert (results["texts"].norm(dim=1) - 1).abs().min() > 1e-3


# --- schedules ----------------------------------------------------------------------------------


def test_cosine_schedule_at_its_edges():
    assert warmup_cosine(0, 5, 20, 0.1) == pytest.approx(0.01)
    assert warmup_cosine(2.5, 5, 20, 0.1) == pytest.approx(0.505)
    assert warmup_cosine(5, 5, 20, 0.1) == pytest.approx(1)
    assert warmup_cosine(12.5, 5, 20, 0.1) == pytest.approx(0.55)
    for epoch in (20, 20.5, 1000):
        assert warmup_cosine(epoch, 5, 20, 0.1) == pytest.approx(0.1)
    assert warmup_cosine(0, 0, 20, 0.1) == pytest.approx(1)
    assert 0 < warmup_cosine(3, 10, 3, 0.1) < 1  # warm-up longer than the run


def test_step_schedule_at_its_edges():
    assert warmup_steps(0, 10, (30, 50), 0.1) == pytest.approx(0.1)
    assert warmup_steps(5, 10, (30, 50), 0.1) == pytest.approx(0.55)
    for epoch, factor in ((10, 1), (29.99, 1), (30, 0.1), (49.99, 0.1), (50, 0.01), (99, 0.01)):
        assert warmup_steps(epoch, 10, (30, 50), 0.1) == pytest.approx(factor)
    assert warmup_steps(0, 0, (), 0.1) == 1
    assert warmup_steps(7, 0, (50, 3), 0.5) == pytest.approx(0.5)  # in any order


@given(st.integers(0, 30), st.integers(1, 60), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_cosine_schedule_rises_then_falls_within_bounds(warmup, epochs, floor):
    factors = [warmup_cosine(e / 4, warmup, epochs, floor) for e in range(4 * epochs + 1)]
    assert all(min(0.01, floor) - 1e-9 <= f <= 1 + 1e-9 for f in factors)
    peak = 4 * min(warmup, epochs)
    steps = [after - before for before, after in itertools.pairwise(factors)]
    assert all(step >= -1e-12 for step in steps[:peak])
    assert all(step <= 1e-12 for step in steps[peak:])


def test_tasks_read_their_own_schedule():
    task = metric_task("metric.schedule=step", "metric.milestones=[4]", "metric.warmup_epochs=2")
    assert [round(task.lr_factor(s), 6) for s in (0, 10, 20, 39, 40)] == [0.1, 0.55, 1, 1, 0.1]
    task = metric_task("metric.schedule=step", "metric.epochs=6", "metric.warmup_epochs=0")
    assert [round(task.lr_factor(s), 6) for s in (29, 30, 49, 50)] == [1, 0.1, 0.1, 0.01]
    rates = "metric.rates=[1,2,0.5]", "metric.warmup_epochs=0", "metric.milestones=[]"
    task = metric_task("metric.schedule=step", "metric.epochs=3", *rates)
    assert [task.lr_factor(step) for step in (0, 9, 10, 19, 20, 29)] == [1, 1, 2, 2, 0.5, 0.5]
    task = metric_task("metric.schedule=cosine", "metric.epochs=4", "metric.warmup_epochs=2")
    assert [round(task.lr_factor(s), 6) for s in (0, 20, 30, 40)] == [0.01, 1, 0.505, 0.01]
    task = prompt_task("prompts.batch=3", "prompts.epochs=10", "prompts.warmup_epochs=5")
    assert task.lr_factor(20) == 1 and task.lr_factor(40) * 3.5e-4 == pytest.approx(1e-6)


def test_parameter_groups_leave_out_what_is_frozen():
    linear, frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    named = [*linear.named_parameters("a"), *frozen.named_parameters("b")]
    weights, biases = parameter_group(named, 0.1, 2.0, 1e-4)
    assert [id(p) for p in weights["params"]] == [id(linear.weight)]
    assert [id(p) for p in biases["params"]] == [id(linear.bias)]
    assert (weights["lr"], biases["lr"], biases["base_lr"]) == (0.1, 0.2, 0.2)
    assert weights["weight_decay"] == biases["weight_decay"] == 1e-4
    assert parameter_group(frozen.named_parameters(), 0.1, 2.0, 0) == []
