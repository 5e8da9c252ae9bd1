"""Run the checks and print a line for each, then all of them as JSON.

    python -m tests.gpu                         # on the GPU; results/CARD-DATE.json is written
    python -m tests.gpu --device cpu --small    # whether the checks themselves run
    python -m tests.gpu --only search refusals

Exit code 1 if a check fails. Figures of speed outside of what was estimated are remarks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic products

import torch

from tests.gpu.embedding import check_embed
from tests.gpu.feeding import check_fed
from tests.gpu.machine import check_machine, name_device
from tests.gpu.searching import check_figures, check_refusals, check_search
from tests.gpu.setting import Row, Setting
from tests.gpu.shares import check_shares
from tests.gpu.steps import (
    check_checkpoint,
    check_correct,
    check_memory,
    check_same,
    check_stages,
    check_step,
    check_waits,
)
from tests.gpu.with_ray import check_ray, has_ray

RESULTS = Path(__file__).parent / "results"
FOREIGN = ("ray", "mlflow", "boto3", "pipelines")

CHECKS: dict[str, Callable[[Setting], Row]] = {
    "machine": check_machine,
    "correct": check_correct,
    "waits": check_waits,
    "search": check_search,
    "step": check_step,
    "stages": check_stages,
    "memory": check_memory,
    "fed": check_fed,
    "checkpoint": check_checkpoint,
    "same": check_same,
    "shares": check_shares,
    "embed": check_embed,
    "figures": check_figures,
    "refusals": check_refusals,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[*CHECKS, "ray"], default=list(CHECKS))
    parser.add_argument("--ray", action="store_true", help="also the part with Ray, minutes more")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: nothing measured")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(torch.device(arguments.device), arguments.small, Path(folder))
        rows = {name: _run(name, CHECKS[name], setting) for name in arguments.only if name != "ray"}
        loaded = sorted(name for name in FOREIGN if name in sys.modules)
        assert not loaded, f"loaded beyond the core: {loaded}"
        if arguments.ray or "ray" in arguments.only:
            if has_ray():
                rows["ray"] = _run("ray", check_ray, setting)
            else:
                print("ray: not installed, left out")
    result = {"date": date.today().isoformat(), "device": name_device(setting.device),
              "small": setting.small, "checks": rows}  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if setting.cuda and not setting.small:
        RESULTS.mkdir(exist_ok=True)
        card = re.sub(r"[^A-Za-z0-9]+", "-", result["device"]).strip("-").lower()
        (RESULTS / f"{card}-{result['date']}.json").write_text(text + "\n")
    return 1 if any(row["problems"] for row in rows.values()) else 0


def _run(name: str, check: Callable[[Setting], Row], setting: Setting) -> dict[str, Any]:
    """Run a check and print its line; an error of any kind is its problem, and the others go on."""
    start = time.perf_counter()
    try:
        row = check(setting)
    except Exception as error:
        row = Row(problems=[f"{type(error).__name__}: {str(error)[:500]}"])
    seconds = round(time.perf_counter() - start, 1)
    state = "FAILED" if row.problems else "ok"
    notes = "; ".join([*row.problems, *row.remarks])
    print(f"{name:<11}{state:<7}{seconds:>6.1f} s  {_brief(row.figures)}  {notes}", flush=True)
    if setting.cuda:
        torch.cuda.empty_cache()
    return {"figures": row.figures, "problems": row.problems, "remarks": row.remarks,
            "seconds": seconds}  # fmt: skip


def _brief(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())[:400]


if __name__ == "__main__":
    sys.exit(main())
