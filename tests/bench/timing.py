"""Times of rival implementations in one run, fair to each on a machine that others use too."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from dpmpp_core.tasks.task import computes_bf16

RESULTS = Path(__file__).parent / "results"


def interleaved(variants: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, ABAB..., after one call of each to warm up.

    On one thread processor time, which leaves out what other processes take; on more wall time.
    """
    clock = time.process_time if _one_thread() else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds + 1):
        for name, call in variants.items():
            start = clock()
            call()
            if i:
                seconds[name].append(clock() - start)
    return seconds


def describe_turns() -> str:
    """How `interleaved` measures, for the results."""
    clock = "Processor" if _one_thread() else "Wall"
    return f"{clock} time, variants in turn (ABAB...), least and median of the calls."


def write(name: str, command: str, lines: list[str]) -> None:
    """Write and print `results/NAME.md`: command, versions, machine class, then `lines`."""
    versions = ", ".join(f"{key} {version(key)}" for key in ("torch", "open_clip_torch", "numpy"))
    bf16 = "bf16 arithmetic" if computes_bf16(torch.device("cpu")) else "no bf16 arithmetic"
    head = [
        f"# {name}",
        "",
        f"`{command}`; {date.today().isoformat()}. Python {platform.python_version()}, {versions}; "
        f"{os.cpu_count()}-core {platform.machine()} CPU, {bf16}; "
        f"{torch.get_num_threads()} thread(s).",
        "",
    ]
    text = "\n".join([*head, *lines]) + "\n"
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def _one_thread() -> bool:
    return torch.get_num_threads() == 1
