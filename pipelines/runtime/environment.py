"""What a figure depends on besides configuration and data: code, packages, machine."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dpmpp_core

PACKAGES = ("dpmpp", "torch", "open_clip_torch", "ray", "optuna", "mlflow", "pyarrow", "numpy")
GIT_TIMEOUT_SECONDS = 10


def environment() -> dict[str, Any]:
    """Return Python, packages, the commit of the code (None outside a checkout) and machine."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": packages,
        "commit": find_commit(),
    }


def find_commit(root: Path = Path(dpmpp_core.__file__).parents[1]) -> str | None:
    """Return the commit of a checkout, `-dirty` if files were changed; None if it is none.

    An installed package is none, although its environment may lie in the checkout of other code.
    """
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=GIT_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def describe_owner() -> str:
    """Return `user@host:process` of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"
