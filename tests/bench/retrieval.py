"""Ranking and search side by side with others: `make bench-retrieval`.

    python -m tests.bench.retrieval [JOB ...]

Runs the jobs of `retrieval_ranking` and `retrieval_search` (those named, or all), keeps their
figures in `results/retrieval.json`, and writes `results/retrieval.md` and `retrieval-scale.md`.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

from tests.bench import retrieval_ranking, retrieval_search
from tests.bench.timing import RESULTS, write

COMMAND = "make bench-retrieval"
KEPT = RESULTS / "retrieval.json"
NOTES = Path(__file__).parent / "retrieval_tries.md"
Figures = dict[str, Any]


def row(work: str, peer: str, theirs: float, ours: float, bar: str, met: bool) -> str:
    return (
        f"| {work} | {peer} | {theirs:.3g} | {ours:.3g} | {theirs / ours:.1f} | {bar} | "
        f"{'yes' if met else '**no**'} |"
    )


def similarity(f: Figures) -> list[str]:
    work = "masked similarity, 2,210 x 17,661 x 768"
    banded = [
        row(f"{work}, masks of 8 bands", "plain cosine (ours)", f["plain"], f["banded"],
            "<= 1.7 x its time", f["banded"] <= 1.7 * f["plain"])
    ] if "banded" in f else []  # fmt: skip
    return [
        row(work, "loop as published", f["loop"], f["ours"], "60 x", f["loop"] >= 60 * f["ours"]),
        row(work, "plain cosine (ours)", f["plain"], f["ours"], "<= 2.0 x its time",
            f["ours"] <= 2 * f["plain"]),
        *banded,
    ]  # fmt: skip


def figures(f: Figures, what: str = "") -> list[str]:
    work = f"CMC, mAP, mINP, 3,368 x 15,913, scores given{what}"
    peers = {"NumPy, all sorted": "numpy", "torchreid (PyPI)": "torchreid",
             "torchmetrics": "torchmetrics"}  # fmt: skip
    return [
        row(work, name, f[key], f["ours"], "8 x", f[key] >= 8 * f["ours"])
        for name, key in peers.items()
    ]


def memory(ours: Figures, theirs: Figures) -> list[str]:
    work = "the same from features with masks, 768 wide"
    return [
        row(work, "scores, then NumPy", theirs["cpu"], ours["cpu"], "-", True),
        f"| ... memory above the inputs, MiB | scores, then NumPy | {theirs['memory']:.0f} | "
        f"{ours['memory']:.0f} | {theirs['memory'] / ours['memory']:.0f} | <= 512 | "
        f"{'yes' if ours['memory'] <= 512 else '**no**'} |",
    ]


def msmt(one: Figures, wall: Figures | None) -> list[str]:
    rank = one["cpu"] - one["products_cpu"]
    lines = [
        f"| MSMT17 size, 11,659 x 82,161 x 768, from features | others: 7-12 GB, not run | - | "
        f"{one['cpu']:.1f}, of which matrix products {one['products_cpu']:.1f}, ranking "
        f"{rank:.1f} ({rank / 2:.1f} a core) | - | <= 10 s of ranking on 2 cores | "
        f"{'yes' if rank / 2 <= 10 else '**no**'} |",
        f"| ... memory above the inputs, MiB | | - | {one['memory']:.0f} | - | < 1024 | "
        f"{'yes' if one['memory'] < 1024 else '**no**'} |",
    ]
    if wall:
        lines.append(
            f"| ... wall seconds on 2 cores | | - | {wall['wall']:.1f}, products alone "
            f"{wall['products_wall']:.1f}; MiB {wall['memory']:.0f} | - | - | - |"
        )
    return lines


def reranking_half(f: Figures) -> list[str]:
    theirs = f["torchreid"] + f["making"]
    return [
        *_best_hundred("1,684 x 7,957", f),
        row(
            "the same, whole lists",
            "torchreid, with distances",
            theirs,
            f["ours_all"],
            "faster",
            f["ours_all"] < theirs,
        ),
        f"| ... share of distances further than 1e-5 from torchreid's; largest | | - | "
        f"{f['share_off']:.1e}; {f['off']:.1e} | - | 0 | "
        f"{'yes' if f['off'] <= 1e-5 else '**no**'} |",
    ]


def reranking(f: Figures) -> list[str]:
    return _best_hundred("3,368 x 15,913", f)


def _best_hundred(size: str, f: Figures) -> list[str]:
    theirs = f["torchreid"] + f["making"]
    return [
        row(f"k-reciprocal, {size} x 768, the best hundred, from features",
            f"torchreid, with distances ({f['making']:.1f} s)", theirs, f["ours"], "5 x",
            theirs >= 5 * f["ours"]),
        f"| ... memory above the inputs, MiB | torchreid, beside the distances | "
        f"{f['torchreid_memory']:.0f} | {f['memory']:.0f} | - | <= 2048 | "
        f"{'yes' if f['memory'] <= 2048 else '**no**'} |",
    ]  # fmt: skip


def million(f: Figures) -> list[str]:
    exact = {name: 1e3 * seconds for name, seconds in f["exact"].items()}
    flat = exact["faiss flat"]
    return [
        f"| one query in 10^6 x 1280, exact, ms: {name} | faiss flat, unmasked | {flat:.0f} | "
        f"{exact[name]:.0f} | {flat / exact[name]:.2f} | <= 2.2 x its time | "
        f"{'yes' if exact[name] <= 2.2 * flat else '**no**'} |"
        for name in exact if name != "faiss flat"
    ]  # fmt: skip


def main(names: list[str]) -> None:
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    ranking = {job.__name__: retrieval_ranking for job in retrieval_ranking.JOBS}
    jobs = ranking | {job.__name__: retrieval_search for job in retrieval_search.JOBS}
    for name in names or jobs:
        kept |= jobs[name].run([name])
        kept["dates"] = {**kept.get("dates", {}), name: date.today().isoformat()}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    table = []
    for name, lines in (("similarity", similarity), ("figures", figures)):
        table += lines(kept[name]) if name in kept else []
    if "figures_of_random_scores" in kept:
        table += figures(kept["figures_of_random_scores"], ", random")
    if {"market", "market_peer"} <= kept.keys():
        table += memory(kept["market"], kept["market_peer"])
    if "msmt" in kept:
        table += msmt(kept["msmt"], kept.get("msmt_wall"))
    for name, lines in (("reranking_half", reranking_half), ("reranking", reranking),
                        ("million", million)):  # fmt: skip
        table += lines(kept[name]) if name in kept else []
    text = [
        "Processor seconds of one thread unless it says otherwise, so that other work on the "
        "machine counts little; each row in a process of its own. Slow peers got a part of the "
        "queries, scaled up: the loop 20, torchreid's and torchmetrics' evaluators 100. "
        f"{versions()}. Vectors are made up; how, says `tests/bench/retrieval_data.py`. Measured: "
        f"{describe_dates(kept['dates'])}.",
        "",
        "| work | peer | theirs | ours | theirs / ours | bar | met |",
        "|---|---|---:|---:|---:|---|---|",
        *table,
    ]
    write("retrieval", COMMAND, [*text, "", NOTES.read_text().strip()])
    if "scale" in kept:
        write("retrieval-scale", COMMAND, scale(kept["scale"]["rows"], kept.get("million")))


def describe_dates(dates: dict[str, str]) -> str:
    """Which jobs are of which day."""
    days = sorted(set(dates.values()))
    return "; ".join(
        f"{day} {', '.join(name for name, at in dates.items() if at == day)}" for day in days
    )


def versions() -> str:
    names = ("faiss-cpu", "torchmetrics")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def scale(rows: list[list[Any]], big: Figures | None) -> list[str]:
    """Measured costs, and what they come to beyond."""
    lines = [
        "1280 wide. One thread, processor seconds. `one`: one query at a time; `of 64`: one of 64 "
        "together. Bytes are what a search reads; originals of compact features stay on disk, "
        "memory-mapped, and are read for what the compact ones cannot decide.",
        "",
        "| images | stored | ms, one | ms, of 64 | bytes an image |",
        "|---:|---|---:|---:|---:|",
        *(f"| {n:,} | {kind} | {1e3 * one:.2f} | {1e3 * many:.2f} | {size:.0f} |"
          for n, kind, one, many, size in rows),
    ]  # fmt: skip
    if big:
        lines.append(f"| 1,000,000 | float32 | {1e3 * big['exact']['ours']:.0f} | - | 5772 |")
    largest = max(n for n, *_ in rows)
    per_item = {kind: (one / n, many / n, size) for n, kind, one, many, size in rows
                if n == largest}  # fmt: skip
    lines += [
        "",
        "Beyond, by a model: an exact search reads every image, so time and memory grow with their "
        f"number, at the rate of {largest:,}; a shard holds what fits its memory, shards work side "
        "by side, and merging their lists costs k items a shard.",
        "",
        "| images | stored | memory | seconds, one query on one core | of 64 together |",
        "|---:|---|---:|---:|---:|",
    ]
    for power in (6, 7, 8, 9):
        for kind in ("float32", "int8"):
            one, many, size = per_item[kind]
            lines.append(
                f"| 10^{power} | {kind} | {size * 10**power / 1e9:,.0f} GB | "
                f"{one * 10**power:,.2f} | {many * 10**power:,.2f} |"
            )
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
