"""Retrieval on a GPU, emulated: the CPU's results, also where TF32 is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from dpmpp_core.retrieval import (
    Gallery,
    compact,
    masked_similarity,
    masked_topk,
    rank_features,
    rerank,
)
from dpmpp_core.retrieval import gallery as gallery_module
from dpmpp_core.retrieval import similarity as similarity_module
from dpmpp_core.retrieval.precision import full_float32
from dpmpp_core.retrieval.sketches import Sketches, pick
from tests.support.emulated_cuda import EmulatedCuda, emulated_cuda, to_device

QUERIES, ITEMS, WIDTH = 16, 400, 96


@pytest.fixture(scope="module")
def spaces() -> tuple[Tensor, Tensor, Tensor]:
    """Queries, masks and a gallery of ten groups of items that are nearly alike."""
    draw = torch.Generator().manual_seed(0)
    group = torch.randn(10, WIDTH, generator=draw)
    gallery = group[torch.arange(ITEMS) % 10] + 1e-4 * torch.randn(ITEMS, WIDTH, generator=draw)
    query = torch.randn(QUERIES, WIDTH, generator=draw)
    return query, torch.rand(QUERIES, WIDTH, generator=draw) + 0.1, gallery


@pytest.fixture
def cuda() -> Iterator[EmulatedCuda]:
    with emulated_cuda() as mode:
        yield mode


@pytest.fixture(params=["tf32 by the older setting", "tf32 by the newer one", "medium"])
def tf32(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "tf32 by the newer one":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision("high" if "older" in request.param else "medium")
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    yield
    after = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    torch.set_float32_matmul_precision("highest")
    assert before == after  # what the user set is as it was


def ids() -> tuple[np.ndarray, ...]:
    return (
        np.arange(QUERIES) % 20, np.arange(ITEMS) % 20,
        np.zeros(QUERIES, np.int64), np.ones(ITEMS, np.int64),
    )  # fmt: skip


def test_search_and_figures_are_those_of_the_cpu_where_tf32_is_allowed(spaces, cuda, tf32):
    query, mask, gallery = spaces
    with full_float32():
        wanted = masked_topk(query, mask, gallery, 20)
        figures = rank_features(query, mask, gallery, *ids())
        scores = masked_similarity(query, mask, gallery)
        plain = masked_similarity(query, None, gallery)
    on_gpu = to_device(gallery)
    for got, expected in zip(masked_topk(query, mask, on_gpu, 20), wanted, strict=True):
        assert got.device.type == "cuda" and torch.equal(got.cpu(), expected)
    of_gpu = rank_features(query, mask, on_gpu, *ids())
    assert (of_gpu.average_precision == figures.average_precision).all()
    for few, expected in ((mask, scores), (None, plain)):
        result = masked_similarity(query, few, on_gpu).cpu()
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)


def test_without_the_guard_tf32_would_change_the_figures(spaces, cuda, tf32, monkeypatch):
    """What the test above can detect."""
    query, mask, gallery = spaces
    figures = rank_features(query, mask, gallery, *ids())
    scores = masked_similarity(query, mask, gallery)
    for module in (gallery_module, similarity_module):
        monkeypatch.setattr(module, "full_float32", nullcontext)
    on_gpu = to_device(gallery)
    changed = rank_features(query, mask, on_gpu, *ids()).average_precision
    assert (changed != figures.average_precision).sum() > QUERIES / 2
    assert (masked_similarity(query, mask, on_gpu).cpu() - scores).abs().max() > 2e-5


def test_nested_blocks_restore_the_setting_when_the_last_one_ends(tf32):
    before = torch.backends.cuda.matmul.fp32_precision
    with full_float32():
        with full_float32():
            pass
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == before == "tf32"


@pytest.mark.parametrize("array", ["tensor on the CPU", "NumPy", "tensor on the GPU"])
def test_queries_are_moved_to_the_gallery(spaces, cuda, array):
    query, mask, gallery = spaces
    expected = masked_similarity(query, mask, gallery)
    given = {"NumPy": Tensor.numpy, "tensor on the GPU": to_device}.get(array, Tensor.clone)
    scores = masked_similarity(given(query), given(mask), to_device(gallery))
    assert scores.device.type == "cuda"
    torch.testing.assert_close(scores.cpu(), expected)
    on_cpu = masked_similarity(to_device(query), to_device(mask), gallery)
    torch.testing.assert_close(on_cpu, expected)


def test_compact_items_on_a_gpu_have_originals_in_host_memory(spaces, cuda):
    query, mask, gallery = spaces
    prepared = Gallery(compact(to_device(gallery), "int8"), originals=gallery)
    assert prepared.device.type == "cuda"
    for few in (slice(0, 1), slice(0, QUERIES)):
        wanted = masked_topk(query[few], mask[few], gallery, 10)
        got = masked_topk(query[few], mask[few], prepared, 10)
        assert all(torch.equal(x.cpu(), y) for x, y in zip(got, wanted, strict=True))


def test_reranking_and_sketches_take_features_from_a_gpu(spaces, cuda):
    query, mask, gallery = spaces
    on_gpu = [to_device(x) for x in spaces]
    expected = rerank(query, mask, gallery, None)
    for got, wanted in zip(rerank(*on_gpu, None), expected, strict=True):
        assert np.array_equal(got, wanted)
    sketches, moved = Sketches.create([{"": gallery}]), Sketches.create([{"": on_gpu[2]}])
    assert torch.equal(sketches.codes, moved.codes)
    allowed = np.ones(ITEMS, bool)
    queries = [Gallery(x).query(query, mask) for x in (gallery, on_gpu[2])]
    lists = [list(sketches.candidates(x, 3, allowed)) for x in queries]
    assert all(np.array_equal(a, b) for a, b in zip(*lists, strict=True))
    some = np.array([3, 7, 300])
    assert torch.equal(pick([{"": on_gpu[2]}], some)[""], gallery[some])


def test_a_gpu_multiplies_whole_blocks(spaces, cuda):
    """On a CPU few queries read pieces of 256 items; each would be several launches."""
    query, mask, gallery = spaces
    on_gpu = Gallery(to_device(gallery.repeat(20, 1)))
    cuda.operations = 0
    masked_topk(query[:1], mask[:1], on_gpu, 5)
    assert cuda.operations < 400  # 305; in pieces of 256 items 465
