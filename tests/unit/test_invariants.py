"""The invariants of the method, and where each is tested; those that had no other place are here.

1 masked metric: constant mask = cosine, scale invariance, closed form = loop
  (test_similarity); finite in bf16 and fp16, values and gradients (here).
2 ArcFace: margin 0 = s cos, monotone over both branches, finite gradient at the poles
  (test_losses); also behind the masked metric (here).
3 mask generator: 0.5 at the start on any grid, its own picture alone, the same again in
  evaluation (test_models); retrieval at the start = without masks (here).
4 head loss: 0 for orthonormal rows, (h^2 - h) / h^2 for identical ones (test_losses).
5 OIoU: triple loop, self-pair 1, period W, empty masks (test_occlusion).
6 transfer: pixel mix = embedding mix at stride 16, full donor mask = nothing (test_occlusion);
  labels kept (test_steps).
7 class-ignoring: only the donor's class, finite with smoothing (test_losses); it reaches the
  plain, masked, image-to-text and triplet losses (test_tasks).
8 prompts: only the tokens learn, end-of-text index (test_models, test_tasks).
9 evaluator = brute force, junk, ties, queries without positives (test_ranking).
10 trained toy: a query's own mask ranks better than another's or the mean one (here).

Losses against a plain transcription of their formulas: test_losses, test_visibility.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpmpp_core.losses.arcface import arcface_logits
from dpmpp_core.losses.contrast import prototype_contrast
from dpmpp_core.losses.cross_entropy import cross_entropy
from dpmpp_core.models.prototypes import Prototypes
from dpmpp_core.retrieval import derangement, masked_similarity, static_masks
from tests.support.tasks import metric_batch, metric_task


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("logit", [-20.0, 0.0, 5.0])
def test_masked_head_is_finite_in_half_precision(dtype, logit):
    """1: as autocast hands things over: half features, float32 masks of half logits."""
    features = normal(0, 6, 48).to(dtype).requires_grad_()
    closed = (normal(1, 6, 48) + logit).to(dtype).requires_grad_()
    masks = closed.float().sigmoid()
    prototypes = Prototypes(5, {"joint": 48})
    with torch.autocast("cpu", torch.bfloat16):
        cosine = prototypes.masked("joint", features, masks)
        logits = arcface_logits(cosine, torch.arange(6) % 5, 30.0, 0.5)
        loss = cross_entropy(logits, torch.arange(6) % 5)
    loss.backward()
    assert cosine.dtype == torch.float32 and loss.isfinite()
    for tensor in (features, closed, prototypes.weight["joint"]):
        assert tensor.grad.isfinite().all() and tensor.grad.any()


def test_arcface_of_a_feature_on_its_prototype_has_a_finite_gradient():
    """2: the closed form may round to a little over 1."""
    prototypes = Prototypes(3, {"joint": 16})
    weight = prototypes.weight["joint"]
    features = torch.stack([weight[0], -weight[0]]).detach().requires_grad_()
    masks = torch.full((2, 16), 0.3, requires_grad=True)
    cosine = prototypes.masked("joint", features, masks)
    arcface_logits(cosine, torch.tensor([0, 0]), 30.0, 0.3).sum().backward()
    assert all(t.grad.isfinite().all() for t in (features, masks, weight))


@torch.no_grad()
def test_an_untrained_model_ranks_as_if_it_had_no_masks():
    """3: and the training head starts out as a plain cosine head."""
    task = metric_task().eval()
    pixels = (metric_batch()["images"].permute(0, 3, 1, 2).float() - 127.5) / 127.5
    reading = task.model(pixels)
    features = task.model.retrieval_features(reading.features)
    with_masks = masked_similarity(features, reading.masks, features)
    torch.testing.assert_close(with_masks, masked_similarity(features, None, features))


def test_the_training_path_is_the_public_metric():
    """1: one metric, whether its arguments are looked at or not."""
    prototypes, features = Prototypes(7, {"joint": 24}), 3 * normal(0, 4, 24)
    for masks in (normal(1, 4, 24).sigmoid(), normal(1, 4, 24).sigmoid() * 1e-20):
        ours = prototypes.masked("joint", features, masks)
        public = masked_similarity(features, masks, prototypes.weight["joint"])
        torch.testing.assert_close(ours, public, atol=1e-6, rtol=0)


def test_rows_that_repeat_an_identity_count_once_in_the_prototype_contrast():
    prototypes, texts = normal(0, 4, 6).requires_grad_(), normal(1, 4, 6)
    rows = torch.tensor([2, 0, 0, 3, 1, 1, 1, 2])
    once = prototype_contrast(prototypes, texts, 0.2)
    repeated = prototype_contrast(prototypes[rows], texts[rows], 0.2, rows)
    torch.testing.assert_close(repeated, once)
    gradients = [torch.autograd.grad(loss, prototypes)[0] for loss in (repeated, once)]
    torch.testing.assert_close(*gradients)


class Toy:
    """Persons with a code each; a picture loses one half of it, and a cue says which half."""

    def __init__(self, seed: int, persons: int = 12, width: int = 32) -> None:
        self.codes, self.generator = normal(99, persons, width), torch.Generator()
        self.generator.manual_seed(seed)

    def pictures(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Labels [N], cue [N, 2], features [N, D]."""
        persons, width = self.codes.shape
        labels = torch.randint(persons, (count,), generator=self.generator)
        left = torch.rand(count, 1, generator=self.generator) < 0.5
        hidden = left == (torch.arange(width) < width // 2)
        noise = torch.randn(count, width, generator=self.generator)
        features = self.codes[labels] + noise * torch.where(hidden, 3.0, 0.3)
        return labels, torch.cat([left, ~left], dim=1).float(), features


def mean_average_precision(scores, query, gallery):
    total = 0.0
    for row, label in zip(scores, query, strict=True):
        right = (gallery == label)[row.argsort(descending=True)].double()
        precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
        total += (precision * right).sum() / right.sum()
    return float(total / len(scores))


def test_true_masks_rank_better_than_permuted_ones_on_a_trained_toy():
    """10: masks learnt from nothing but masked ArcFace, measured on pictures not trained on."""
    toy = Toy(0)
    prototypes = Prototypes(len(toy.codes), {"joint": 32})
    generator = torch.nn.Linear(2, 32)
    for parameter in generator.parameters():
        torch.nn.init.zeros_(parameter)
    optimiser = torch.optim.Adam([*prototypes.parameters(), *generator.parameters()], lr=0.05)
    for _ in range(120):
        labels, cue, features = toy.pictures(64)
        cosine = prototypes.masked("joint", features, generator(cue).sigmoid())
        loss = cross_entropy(arcface_logits(cosine, labels, 16.0, 0.1), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    labels, cue, features = Toy(1).pictures(200)
    gallery = toy.codes
    masks = generator(cue).sigmoid().detach().numpy()
    figures = {
        name: mean_average_precision(
            masked_similarity(features, mask, gallery), labels, torch.arange(len(gallery))
        )
        for name, mask in {
            "own": masks,
            "permuted": masks[derangement(len(masks), seed=0)],
            "static": static_masks({"toy": masks})["toy"],
            "none": np.ones_like(masks),
        }.items()
    }
    assert figures["own"] > max(figures["permuted"], figures["static"], figures["none"]) + 0.05
