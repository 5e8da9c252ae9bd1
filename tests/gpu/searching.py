"""Search and figures: the CPU's results to the last digit, also where TF32 is allowed; refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
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
from dpmpp_core.retrieval.sketches import Sketches
from tests.gpu.setting import Row, Setting


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    if allowed:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def _alike(items: int, width: int, groups: int) -> Tensor:
    """Draw items in groups that are nearly alike, so that rounding decides many orders."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(groups, width, generator=draw)
    group = torch.randint(0, groups, (items,), generator=draw)
    return centres[group].add_(torch.randn(items, width, generator=draw), alpha=1e-3)


def check_search(setting: Setting) -> Row:
    """Time exact search of float32 and int8, few and many queries; compare a part with a CPU."""
    row = Row()
    items, width = setting.size(1_000_000, 3_000), setting.size(1280, 96)
    gallery = _alike(items, width, max(10, items // 100))
    draw = torch.Generator().manual_seed(1)
    query = torch.randn(64, width, generator=draw)
    mask = torch.rand(64, width, generator=draw) + 0.05
    part = gallery[: setting.size(50_000, 3_000)]
    wanted = masked_topk(query, mask, part, 10)
    usual = mask.mean(0)
    on_device = gallery.to(setting.device)
    kinds = {
        "float32": lambda x: Gallery(x, usual_mask=usual),
        "int8": lambda x: Gallery(compact(x, "int8"), originals=x.cpu(), usual_mask=usual),
    }
    for kind, build in kinds.items():
        prepared = build(on_device)
        for count in (1, 8, 64):
            few = query[:count].to(setting.device), mask[:count].to(setting.device)
            seconds = setting.seconds(lambda f=few, p=prepared: masked_topk(*f, p, 10),
                                      setting.size(5, 1))  # fmt: skip
            row.figures[f"{kind}_{count}_queries_ms"] = round(1e3 * seconds, 2)
        for allowed in (False, True):
            with _tf32(allowed):
                got = masked_topk(query, mask, build(on_device[: len(part)]), 10)
            same = all(torch.equal(x.cpu(), y) for x, y in zip(got, wanted, strict=True))
            row.figures[f"{kind}_equal{'_with_tf32' if allowed else ''}"] = same
            row.require(same, f"{kind}: lists differ from the CPU's (TF32 allowed: {allowed})")
    if setting.cuda:
        single = row.figures["float32_1_queries_ms"]
        row.expect(single <= 10, f"one query takes {single} ms, more than 10")
    return row


def check_figures(setting: Setting) -> Row:
    """Rank Market-1501's size with the default model's dimensions on both devices."""
    row = Row()
    queries, items = setting.size(3368, 60), setting.size(15_913, 400)
    width, people = setting.size(7424, 256), setting.size(750, 20)
    draw = torch.Generator().manual_seed(2)
    query = torch.randn(queries, width, generator=draw)
    mask = torch.rand(queries, width, generator=draw) + 0.05
    gallery = _alike(items, width, people)
    ids = (np.arange(queries) % people, np.arange(items) % people,
           np.zeros(queries, np.int64), np.arange(items) % 6)  # fmt: skip
    on_device = gallery.to(setting.device)
    some = slice(0, setting.size(256, 60))  # of the queries, on a CPU

    def rank(x: Tensor, rows: slice) -> np.ndarray:
        of_queries = ids[0][rows], ids[1], ids[2][rows], ids[3]
        return rank_features(query[rows], mask[rows], x, *of_queries).average_precision

    whole = slice(0, queries)
    seconds = setting.seconds(lambda: rank(on_device, whole), 1, warm=0)
    row.figures["s"] = round(seconds, 3)
    row.figures["cpu_s_for_a_part"] = round(setting.seconds(lambda: rank(gallery, some), 1, 0), 3)
    wanted = rank(gallery, some)
    for allowed in (False, True):
        with _tf32(allowed):
            same = bool((rank(on_device, some) == wanted).all())
        row.figures[f"equal{'_with_tf32' if allowed else ''}"] = same
        row.require(same, f"average precisions differ from the CPU's (TF32 allowed: {allowed})")
    if setting.cuda:
        times = row.figures["cpu_s_for_a_part"] * queries / some.stop / row.figures["s"]
        row.figures["times_as_fast_as_the_cpu"] = round(times, 1)
        row.expect(times >= 10, f"the GPU is {times:.1f} times as fast as this CPU, not 10")
    return row


def check_refusals(setting: Setting) -> Row:
    """Give functions tensors of two devices: a result, or a sentence of ours."""
    row = Row()
    draw = torch.Generator().manual_seed(3)
    query, gallery = torch.randn(4, 32, generator=draw), torch.randn(50, 32, generator=draw)
    mask = torch.rand(4, 32, generator=draw) + 0.1
    q, m, g = (x.to(setting.device) for x in (query, mask, gallery))
    ids = np.arange(4), np.arange(50) % 4, np.zeros(4, np.int64), np.ones(50, np.int64)
    calls: dict[str, Callable[[], object]] = {
        "rerank": lambda: rerank(q, m, g, None),
        "sketches": lambda: list(
            Sketches.create([{"": g}]).candidates(
                Gallery(g).query(query, mask), 3, np.ones(50, bool)
            )
        ),
        "similarity, query on the CPU": lambda: masked_similarity(query, mask, g),
        "similarity, gallery on the CPU": lambda: masked_similarity(q, m, gallery),
        "similarity, NumPy": lambda: masked_similarity(query.numpy(), mask.numpy(), g),
        "search": lambda: masked_topk(query, mask, g, 3),
        "int8, originals on the CPU": lambda: masked_topk(
            q, m, Gallery(compact(g, "int8"), originals=gallery), 3
        ),
        "figures": lambda: rank_features(query, mask, g, *ids),
    }
    for name, call in calls.items():
        try:
            call()
            row.figures[name] = "a result"
        except ValueError as error:
            row.figures[name] = f"refused: {error}"
        except RuntimeError as error:
            row.figures[name] = f"RuntimeError: {str(error).splitlines()[0]}"
            row.require(False, f"{name}: {str(error).splitlines()[0]}")
    return row
