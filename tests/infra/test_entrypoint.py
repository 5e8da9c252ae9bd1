"""What is submitted arrives at the job word by word, through the shells of submitter and driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmpp_core.errors import ConfigError
from pipelines.deploy.entrypoint import format_driver_command, format_entrypoint, split_entrypoint
from pipelines.deploy.jobs import build_job
from pipelines.deploy.pods import iter_operator_pods
from tests.infra.conftest import rendered

WORDS = (
    "x=trial #3", "#3", "a=#b", "x=(a)", "x=(a b)", "[a-z]*", "a;b", "a & b", "a|b", "a>b", "<a",
    "it's", "it's one", 'say "a"', '"', "'", "\\", "a\\b", "$HOME", "$(id)", "`id`", "~", "~root",
    "{a,b}", "{1..3}", "s3://b/{date}", "a=b=c", "", " ", "  two  blanks ", "!x", "x!", "é 漢",
    "漢", "--", "-x", "a*", "?", "[pool=train]", "data.licence=CC BY-NC #4.0", "%1", "a%b", "^",
    "a{b",
)  # fmt: skip
OVERRIDES = ["x=trial #3", "metric.epochs=3", "note=a (b)", "cluster.train_nodes=[pool=train]"]


def through_shells(entrypoint: str, folder: Path) -> list[str]:
    """The words that a program gets as the driver of a job: bash, Ray's joining, sh."""
    program = folder / "program"
    program.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")  # it starts sooner than Python
    program.chmod(0o755)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "cwd": folder}
    done = subprocess.run(
        ["/bin/bash", "-ce", "--", f"program -- {entrypoint} ; true"], env=env, **options
    )
    command = subprocess.list2cmdline(done.stdout.split("\0")[1:-1])  # as `ray job submit` does
    assert command == format_driver_command(entrypoint)
    done = subprocess.run(f"program {command}", shell=True, env=env, **options)
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_arrives_or_is_refused(word: str, tmp_path: Path) -> None:
    (tmp_path / "a1").touch()  # what a pattern would match
    try:
        entrypoint = format_entrypoint(["dpmpp", word, "end"])
    except ConfigError as error:
        assert "do not go together" in str(error) and {" "} < set(word)
        return
    assert through_shells(entrypoint, tmp_path) == ["dpmpp", word, "end"]
    assert split_entrypoint(entrypoint) == ["dpmpp", word, "end"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")))))
def test_any_words_are_read_back_or_refused(words: list[str]) -> None:
    try:
        entrypoint = format_entrypoint(words)
    except ConfigError as error:
        assert str(error)
        return
    assert split_entrypoint(entrypoint) == words


def test_what_is_asked_is_what_the_submitter_hands_on(tmp_path: Path) -> None:
    job = build_job(rendered("local"), "train", OVERRIDES)
    asked = ["dpmpp", "train", "--address", "auto", "--json", *OVERRIDES]
    assert through_shells(job["spec"]["entrypoint"], tmp_path) == asked
    script = dict(iter_operator_pods(job))["submitter"]["spec"]["containers"][0]["args"][0]
    (tmp_path / "python").symlink_to("/bin/true")  # the head answers at once
    ray = tmp_path / "ray"
    ray.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        "if sys.argv[2] == 'status': sys.exit(1)\n"
        "if sys.argv[2] == 'submit': print(json.dumps(sys.argv[sys.argv.index('--') + 1 :]))\n"
    )
    ray.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["/bin/bash", "-ce", "--", script], capture_output=True, text=True, check=True, env=env
    )
    assert subprocess.list2cmdline(json.loads(done.stdout)) == format_driver_command(
        job["spec"]["entrypoint"]
    )
