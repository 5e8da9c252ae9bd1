"""Each loss against a plain per-sample transcription of its formula, and at its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dpmpp_core.losses.arcface import arcface_logits
from dpmpp_core.losses.contrast import (
    caption_contrast,
    multi_view_contrast,
    prototype_contrast,
    supervised_contrast,
)
from dpmpp_core.losses.cross_entropy import cross_entropy
from dpmpp_core.losses.heads import head_diversity
from dpmpp_core.losses.triplet import batch_hard_triplet

SEEDS = st.integers(0, 2**32 - 1)
MARGINS = (0.0, 0.05, 0.3, 0.5, 1.0, 1.5)


def close(a, b, atol=1e-5, rtol=1e-5):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(),
                               atol=atol, rtol=rtol)  # fmt: skip


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def integers(seed, low, high, count):
    return torch.from_numpy(np.random.default_rng((seed, 1)).integers(low, high, count))


def finite_gradient(loss, *inputs):
    gradients = torch.autograd.grad(loss, inputs)
    return all(g.isfinite().all() for g in gradients)


# --- ArcFace ------------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 6), st.integers(1, 6), st.sampled_from(MARGINS), st.floats(1, 64))
@settings(max_examples=60, deadline=None)
def test_arcface_is_its_formula(seed, rows, classes, margin, scale):
    cosine = torch.from_numpy(np.random.default_rng(seed).uniform(-0.999, 0.999, (rows, classes)))
    labels = integers(seed, 0, classes, rows)
    expected = scale * cosine.clone()
    for i, label in enumerate(labels.tolist()):
        c = float(cosine[i, label])
        inside = c > math.cos(math.pi - margin)
        moved = math.cos(math.acos(c) + margin) if inside else c - math.sin(margin) * margin
        expected[i, label] = scale * moved
    close(arcface_logits(cosine, labels, scale, margin), expected, atol=1e-3)


def test_arcface_without_margin_scales_the_cosine_exactly():
    cosine = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [0.3, 0.99999]])
    logits = arcface_logits(cosine, torch.tensor([0, 0, 1]), 30.0, 0.0)
    assert torch.equal(logits, 30 * cosine)


@pytest.mark.parametrize("margin", MARGINS)
def test_arcface_rises_with_the_cosine_over_both_branches(margin):
    cosine = torch.linspace(-1, 1, 20_001)[:, None]
    logits = arcface_logits(cosine, torch.zeros(len(cosine), dtype=torch.int64), 1.0, margin)[:, 0]
    assert (logits.diff() >= -1e-6).all()
    assert (logits <= cosine[:, 0] + 2e-4).all()  # a margin never helps; 2e-4: the guard's edge
    if margin > 0.1:
        beyond = cosine[:, 0] <= math.cos(math.pi - margin)
        assert 0 < beyond.sum() < len(cosine)
        assert logits[beyond].diff().min() > 0  # no dead zone where it is most wrong


@pytest.mark.parametrize("margin", MARGINS)
def test_arcface_has_a_finite_gradient_at_the_poles(margin):
    cosine = torch.tensor([[1.0, 0.2], [-1.0, 0.2], [0.2, 1.0]], requires_grad=True)
    logits = arcface_logits(cosine, torch.tensor([0, 0, 0]), 30.0, margin)
    assert logits.isfinite().all() and finite_gradient(logits.sum(), cosine)


def test_arcface_computes_half_precision_in_float32():
    logits = arcface_logits(torch.tensor([[0.5, -0.5]]).bfloat16(), torch.tensor([0]), 30.0, 0.3)
    assert logits.dtype == torch.float32


# --- cross entropy ------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 6), st.integers(2, 7), st.sampled_from([0.0, 0.1, 0.9]))
@settings(max_examples=60, deadline=None)
def test_cross_entropy_is_its_formula_without_the_ignored_class(seed, rows, classes, smoothing):
    logits = 5 * normal(seed, rows, classes)
    labels = integers(seed, 0, classes, rows)
    ignored = integers(seed + 1, -1, classes, rows)
    total = 0.0
    for z, label, skip in zip(logits.tolist(), labels.tolist(), ignored.tolist(), strict=True):
        left = [c for c in range(classes) if c != skip or c == label]
        norm = math.log(sum(math.exp(z[c]) for c in left))
        for c in left:
            weight = smoothing / len(left) + (1 - smoothing) * (c == label)
            total -= weight * (z[c] - norm)
    close(cross_entropy(logits, labels, smoothing, ignored), total / rows)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [None, -1, "label"])
def test_cross_entropy_is_torch_s_when_nothing_is_ignored(smoothing, ignored):
    logits, labels = normal(0, 9, 5), integers(0, 0, 5, 9)
    given_ignored = {None: None, -1: torch.full((9,), -1), "label": labels}[ignored]
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    close(cross_entropy(logits, labels, smoothing, given_ignored), expected, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_gives_the_ignored_class_no_part(smoothing):
    logits = normal(1, 4, 5).requires_grad_()
    labels, ignored = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 0, 2, -1])
    loss = cross_entropy(logits, labels, smoothing, ignored)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and gradient.isfinite().all()
    assert gradient[0, 4] == 0 and gradient[1, 0] == 0
    assert (gradient[2] != 0).all() and (gradient[3] != 0).all()
    louder = logits.detach().clone()
    louder[0, 4] = louder[1, 0] = 1e4
    close(cross_entropy(louder, labels, smoothing, ignored), loss.detach())


def test_cross_entropy_with_only_the_label_left_is_zero():
    logits = normal(2, 3, 2).requires_grad_()
    loss = cross_entropy(logits, torch.tensor([0, 1, 0]), 0.1, torch.tensor([1, 0, 1]))
    assert loss == 0 and finite_gradient(loss, logits)


# --- triplet ------------------------------------------------------------------------------------


def naive_triplet(features, labels, margin, ignored):
    points, total, count = features.double(), 0.0, 0
    for i, pid in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        positives = [(points[i] - points[j]).norm().item() for j in others if labels[j] == pid]
        negatives = [
            (points[i] - points[j]).norm().item()
            for j in others
            if labels[j] != pid and labels[j] != ignored[i]
        ]
        if positives and negatives:
            count += 1
            gap = max(positives) - min(negatives)
            soft = margin is None
            total += math.log1p(math.exp(gap)) if soft else max(0.0, gap + margin)
    return total / max(count, 1)


@given(SEEDS, st.integers(1, 9), st.integers(1, 4), st.sampled_from([0.0, 0.3, 2.0, None]))
@settings(max_examples=80, deadline=None)
def test_triplet_is_the_loop_with_donors_and_lonely_anchors(seed, rows, pids, margin):
    features, labels = normal(seed, rows, 3), integers(seed, 0, pids, rows)
    donors = integers(seed + 1, -1, pids, rows)
    expected = naive_triplet(features, labels.tolist(), margin, donors.tolist())
    close(batch_hard_triplet(features, labels, margin, donors), expected, atol=1e-4)
    none = naive_triplet(features, labels.tolist(), margin, [-1] * rows)
    close(batch_hard_triplet(features, labels, margin), none, atol=1e-4)


def test_triplet_donor_is_no_negative_of_its_sample_only():
    features = torch.tensor([[0.0], [1.0], [0.1], [9.0], [9.0]])
    labels = torch.tensor([0, 0, 1, 2, 2])
    donors = torch.tensor([1, -1, -1, -1, -1])
    # Anchor 0: 1 - 9 instead of 1 - 0.1; anchor 1: 1 - 0.9; pid 1 has no positive; pid 2: 0 - 8.
    close(batch_hard_triplet(features, labels, 0.3), (1.2 + 0.4) / 4)
    close(batch_hard_triplet(features, labels, 0.3, donors), 0.4 / 4)


@pytest.mark.parametrize(
    ("labels", "donors"),
    [([0, 0, 0], None), ([0, 1, 2], None), ([0, 0, 1], [1, 1, 0])],
    ids=["no negative", "no positive", "donors are the only negatives"],
)
def test_triplet_without_a_usable_anchor_is_zero_and_finite(labels, donors):
    features = normal(3, 3, 4).requires_grad_()
    donors = None if donors is None else torch.tensor(donors)
    loss = batch_hard_triplet(features, torch.tensor(labels), 0.3, donors)
    assert loss == 0 and finite_gradient(loss, features)


def test_triplet_of_identical_features_is_the_margin_with_a_finite_gradient():
    features = torch.ones(4, 3, requires_grad=True)
    loss = batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]), 0.3)
    close(loss.detach(), 0.3)
    assert finite_gradient(loss, features)


# --- heads --------------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 3), st.integers(1, 5), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_head_diversity_is_its_formula(seed, batch, heads, patches):
    logits = normal(seed, batch, heads, patches)
    total = 0.0
    for sample in logits.double().numpy():
        rows = sample / np.linalg.norm(sample, axis=1, keepdims=True)
        total += np.square(rows @ rows.T - np.eye(heads)).sum() / heads**2
    close(head_diversity(logits), total / batch)


@pytest.mark.parametrize("heads", [1, 3, 12])
def test_head_diversity_at_its_extremes(heads):
    orthonormal = 7 * torch.eye(heads, 16).expand(2, -1, -1)
    identical = normal(0, 2, 1, 16).expand(2, heads, 16)
    close(head_diversity(orthonormal), 0.0)
    close(head_diversity(identical), (heads**2 - heads) / heads**2)


def test_head_diversity_of_silent_heads_is_finite():
    logits = torch.zeros(1, 3, 8, requires_grad=True)
    assert finite_gradient(head_diversity(logits), logits)


# --- contrasts ----------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 7), st.integers(1, 4), st.sampled_from([1.0, 14.3]))
@settings(max_examples=40, deadline=None)
def test_supervised_contrast_is_its_formula(seed, rows, pids, scale):
    anchors, others = normal(seed, rows, 5), normal(seed + 1, rows, 5)
    labels = integers(seed, 0, pids, rows).tolist()
    products = scale * anchors.double() @ others.double().T
    total = 0.0
    for i in range(rows):
        norm = math.log(sum(math.exp(products[i, j]) for j in range(rows)))
        terms = [norm - products[i, j].item() for j in range(rows) if labels[j] == labels[i]]
        total += sum(terms) / len(terms)
    close(supervised_contrast(anchors, others, torch.tensor(labels), scale), total / rows, 1e-4)


def test_supervised_contrast_closed_forms():
    labels = torch.arange(6)
    close(supervised_contrast(torch.ones(6, 4), torch.ones(6, 4), labels, 3.0), math.log(6))
    close(supervised_contrast(torch.eye(6), torch.eye(6), labels, 100.0), 0.0)
    together = torch.zeros(6, dtype=torch.int64)
    close(supervised_contrast(torch.ones(6, 4), torch.ones(6, 4), together, 3.0), math.log(6))


def test_supervised_contrast_is_finite_for_long_clip_features():
    anchors = (100 * normal(0, 8, 16)).requires_grad_()
    loss = supervised_contrast(anchors, 100 * normal(1, 8, 16), integers(0, 0, 3, 8), 1.0)
    assert loss.isfinite() and finite_gradient(loss, anchors)


@given(SEEDS, st.integers(1, 6), st.sampled_from([0.05, 1.0]))
@settings(max_examples=40, deadline=None)
def test_prototype_contrast_is_its_formula_whatever_the_lengths(seed, classes, temperature):
    prototypes, texts = 9 * normal(seed, classes, 5), 0.1 * normal(seed + 1, classes, 5)
    total = 0.0
    for c in range(classes):
        scores = nn.functional.cosine_similarity(prototypes[c].double(), texts.double())
        scores = (scores / temperature).tolist()
        total += math.log(sum(math.exp(s) for s in scores)) - scores[c]
    close(prototype_contrast(prototypes, texts, temperature), total / classes, atol=1e-4)


def test_prototype_contrast_closed_forms():
    close(prototype_contrast(torch.ones(5, 3), torch.ones(5, 3), 0.05), math.log(5))
    close(prototype_contrast(torch.eye(4), torch.eye(4), 0.5), math.log(1 + 3 * math.exp(-2)))


def test_prototype_contrast_moves_the_prototypes_and_never_the_texts():
    prototypes, texts = normal(0, 4, 5).requires_grad_(), normal(1, 4, 5).requires_grad_()
    prototype_contrast(prototypes, texts, 0.05).backward()
    assert prototypes.grad.isfinite().all() and prototypes.grad.abs().sum() > 0
    assert texts.grad is None


# --- contrasts of pre-training ------------------------------------------------------------------


@given(SEEDS, st.integers(2, 5), st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_multi_view_contrast_is_the_mean_over_pairs(seed, people, pictures):
    labels = torch.arange(people).repeat_interleave(pictures)
    features = nn.functional.normalize(normal(seed, len(labels), 8), dim=1)
    terms = []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        total = sum(math.exp(float(features[i] @ features[j]) / 0.1) for j in others)
        same = [j for j in others if labels[j] == labels[i]]
        terms.append(
            -sum(float(features[i] @ features[j]) / 0.1 - math.log(total) for j in same) / len(same)
        )
    close(multi_view_contrast(features, labels, 0.1), sum(terms) / len(terms), atol=1e-4)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_caption_contrast_counts_equal_captions_as_right(seed):
    images = nn.functional.normalize(normal(seed, 6, 5), dim=1)
    texts = nn.functional.normalize(normal(seed + 1, 3, 5), dim=1)
    texts[2] = texts[0]
    index = torch.tensor([0, 0, 1, 1, 2, 2])
    same = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    logits = (7.0 * images @ texts.T).double()
    rows = [
        -sum(float(logits[i, c] - logits[i].logsumexp(0)) for c in range(3) if same[index[i], c])
        / int(same[index[i]].sum())
        for i in range(6)
    ]
    columns = []
    for c in range(3):
        right = [i for i in range(6) if same[c, index[i]]]
        columns.append(
            -sum(float(logits[i, c] - logits[:, c].logsumexp(0)) for i in right) / len(right)
        )
    expected = (sum(rows) / 6 + sum(columns) / 3) / 2
    close(caption_contrast(images, texts, index, same, torch.tensor(7.0)), expected)


def test_contrasts_of_pretraining_have_finite_gradients():
    features = nn.functional.normalize(normal(3, 8, 4), dim=1).requires_grad_()
    labels = torch.arange(4).repeat_interleave(2)
    texts = nn.functional.normalize(normal(4, 4, 4), dim=1).requires_grad_()
    loss = multi_view_contrast(features, labels, 0.1)
    loss = loss + caption_contrast(
        features, texts, labels, torch.eye(4, dtype=torch.bool), torch.tensor(14.0)
    )
    assert finite_gradient(loss, features, texts)
