"""The dynamic masked metric: its closed form, its invariances, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from dpmpp_core.retrieval import masked_similarity
from dpmpp_core.retrieval.arguments import equal_neighbours


def looped(query: Tensor, mask: Tensor, gallery: Tensor) -> Tensor:
    """psi, one query at a time, as written in the paper; float64."""
    rows = []
    for q, m in zip(query.double(), mask.double(), strict=True):
        rows.append(normalize(gallery.double() * m) @ (q / q.norm()))
    return torch.stack(rows)


def arrays(seed: int, q: int = 7, g: int = 11, d: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(q, d, generator=rng),
        torch.rand(q, d, generator=rng),
        torch.randn(g, d, generator=rng),
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    q=st.integers(1, 6),
    g=st.integers(1, 6),
    d=st.integers(1, 40),
    power=st.integers(1, 12),
)
def test_closed_form_equals_the_loop(seed: int, q: int, g: int, d: int, power: int) -> None:
    query, mask, gallery = arrays(seed, q, g, d)
    mask = mask**power + 1e-4
    expected = looped(query, mask, gallery)
    torch.testing.assert_close(
        masked_similarity(query.double(), mask.double(), gallery.double()),
        expected,
        rtol=0,
        atol=1e-12,
    )
    ours = masked_similarity(query, mask, gallery)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-6)


def test_closed_form_equals_the_loop_at_real_width() -> None:
    query, mask, gallery = arrays(0, 20, 50, 768)
    ours = masked_similarity(query, mask, gallery)
    assert ours.dtype == torch.float32
    assert (ours.double() - looped(query, mask, gallery)).abs().max() < 1e-6


@pytest.mark.parametrize("value", [0.5, 1.0, 1e-6, 1e-25, 1e6])
def test_constant_mask_is_the_plain_cosine(value: float) -> None:
    query, _, gallery = arrays(1)
    cosine = cosine_similarity(query[:, None], gallery[None], dim=2)
    ours = masked_similarity(query, torch.full_like(query, value), gallery)
    torch.testing.assert_close(ours, cosine, rtol=0, atol=1e-6)
    torch.testing.assert_close(masked_similarity(query, None, gallery), cosine, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-3, 1e3, 1e12, 1e30])
def test_scale_of_any_argument_does_not_count(scale: float) -> None:
    query, mask, gallery = arrays(2)
    expected = masked_similarity(query, mask, gallery)
    for scaled in (
        masked_similarity(query * scale, mask, gallery),
        masked_similarity(query, mask * scale, gallery),
        masked_similarity(query, mask, gallery * scale),
    ):
        torch.testing.assert_close(scaled, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-20, 1e-38, 1e-42])
def test_gradients_stay_finite_as_the_mask_goes_to_zero(size: float) -> None:
    query, mask, gallery = arrays(3)
    inputs = [query, mask * size + torch.finfo(torch.float32).tiny * 1e-5, gallery]
    inputs = [x.clone().requires_grad_() for x in inputs]
    masked_similarity(*inputs).square().sum().backward()
    for x in inputs:
        assert x.grad is not None and x.grad.isfinite().all()


def test_gradients_are_those_of_the_loop() -> None:
    query, mask, gallery = (x.double() for x in arrays(4, 3, 4, 5))
    inputs = [x.requires_grad_() for x in (query, mask, gallery)]
    assert torch.autograd.gradcheck(masked_similarity, inputs)
    ours = torch.autograd.grad(masked_similarity(*inputs).pow(3).sum(), inputs)
    theirs = torch.autograd.grad(looped(*inputs).pow(3).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_gallery_item_that_vanishes_under_the_mask_scores_zero_with_finite_gradient() -> None:
    query = torch.ones(1, 4)
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]], requires_grad=True)
    gallery = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    scores = masked_similarity(query, mask, gallery)
    torch.testing.assert_close(scores, torch.tensor([[0.0, 0.5**0.5]]))
    scores.sum().backward()
    assert mask.grad is not None and mask.grad.isfinite().all()


@pytest.mark.parametrize("bands", [1, 4, 32, 64])
def test_masks_of_bands_equal_the_loop_with_its_gradients(bands: int) -> None:
    query, mask, gallery = (x.double() for x in arrays(8))
    mask = mask[:, :bands].repeat_interleave(64 // bands, dim=1)
    given = [x.requires_grad_() for x in (query, mask.clone(), gallery)]
    scores = masked_similarity(*given)
    grads = torch.autograd.grad(scores.square().sum(), given)
    expected = looped(*given)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), given))


@pytest.mark.parametrize(
    ("mask", "size"),
    [
        ([[1, 1, 2, 2]], 2),
        ([[1, 1, 1, 1]], 4),
        ([[1, 1, 1, 2]], 1),
        ([[3, 3, 3, 3], [1, 2, 2, 2]], 1),
    ],
)
def test_groups_of_equal_neighbours_hold_for_all_masks(mask: list[list[int]], size: int) -> None:
    assert equal_neighbours(torch.tensor(mask)) == size


def test_metric_is_asymmetric() -> None:
    query, mask, _ = arrays(5)
    scores = masked_similarity(query, mask, query)
    assert (scores - scores.T).abs().max() > 0.01


def test_spaces_are_averaged() -> None:
    first, second = arrays(6, d=8), arrays(7, d=13)
    both = masked_similarity(*({"v": a, "v_p": b} for a, b in zip(first, second, strict=True)))
    expected = (masked_similarity(*first) + masked_similarity(*second)) / 2
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_under_autocast_too(dtype: torch.dtype) -> None:
    query, mask, gallery = (x.to(dtype) for x in arrays(8, d=512))
    expected = looped(query, mask, gallery)
    with torch.autocast("cpu", torch.bfloat16):
        ours = masked_similarity(query, mask, gallery)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-6)


def test_numpy_and_read_only_arrays_and_tensors_mix() -> None:
    query, mask, gallery = arrays(9)
    frozen = np.asarray(query).copy()
    frozen.flags.writeable = False
    expected = masked_similarity(query, mask, gallery)
    torch.testing.assert_close(masked_similarity(frozen, mask.numpy(), gallery), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("position, name", [(0, "query"), (1, "query_mask"), (2, "gallery")])
def test_non_finite_values_are_refused_by_name_and_row(
    position: int, name: str, bad: float
) -> None:
    inputs = list(arrays(10))
    inputs[position][3, 2] = bad
    with pytest.raises(ValueError, match=rf"^{name}: row 3 has NaN or infinity"):
        masked_similarity(*inputs)


@pytest.mark.parametrize(
    "position, message",
    [
        (0, r"^query: row 2 \(and 1 more rows\) is a feature vector of length zero"),
        (1, r"^query_mask: row 2 \(and 1 more rows\) is all zero"),
        (2, r"^gallery: row 2 \(and 1 more rows\) is a feature vector of length zero"),
    ],
)
def test_zero_rows_are_refused_by_name_and_row(position: int, message: str) -> None:
    inputs = list(arrays(11))
    inputs[position][[2, 5]] = 0
    with pytest.raises(ValueError, match=message):
        masked_similarity(*inputs)


def test_errors_name_the_space() -> None:
    query, mask, gallery = arrays(12)
    broken = gallery.clone()
    broken[4] = 0
    with pytest.raises(ValueError, match=r"gallery of space 'v_p': row 4"):
        masked_similarity(
            {"v": query, "v_p": query}, {"v": mask, "v_p": mask}, {"v": gallery, "v_p": broken}
        )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda q, m, g: (q, m, g[:, :-1]), "64 dimensions but gallery has 63"),
        (lambda q, m, g: (q, m[:-1], g), r"query_mask has shape \(6, 64\)"),
        (lambda q, m, g: (q[0], m, g), r"query must be \[N, D\]"),
        (lambda q, m, g: (q, -m, g), "negative"),
        (lambda q, m, g: ({"v": q}, {"v": m}, {"w": g}), r"gallery has the spaces \['w'\]"),
        (lambda q, m, g: ({"v": q}, {}, {"v": g}), r"query_mask has the spaces \[\]"),
        (lambda q, m, g: ({}, None, {}), "no metric space"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        masked_similarity(*change(*arrays(13)))
