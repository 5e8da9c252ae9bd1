"""What a user gets wrong on the command line: exit code 2, one line, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpmpp_core.data.sightings import Sighting
from dpmpp_core.errors import DataError
from dpmpp_core.index import GalleryIndex, ModelVersion
from pipelines.workflows import pipeline
from pipelines.workflows.options import Options
from tests.support.cli import assert_mistake, invoke_dpmpp


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["metric.epoch=3"], "did you mean 'metric.epochs'"),
        (["metric.identities=-4"], "metric.identities"),
        (["prompts.batch=-1"], "prompts.batch"),
        (["model.checkpoint=/nowhere/clip.safetensors"], "/nowhere/clip.safetensors"),
        (["--config", "market150"], "did you mean 'market1501'"),
        ([], "/nowhere/data"),
        (["--colour"], "--colour"),
    ],
)
def test_a_pipeline_is_refused(arguments: list[str], says: str, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    lines = None if arguments == ["--colour"] else 1  # options that do not exist get a box
    places = ["--data", "/nowhere/data", "--storage", str(storage)]
    assert_mistake(invoke_dpmpp("run", *places, *arguments), says, lines)
    assert not storage.exists()


@pytest.mark.parametrize("arguments", [[], ["--config", "proof"], ["--config", "market1501"]])
def test_a_run_without_data_draws_nobody(arguments: list[str], tmp_path: Path) -> None:
    done = invoke_dpmpp("run", "--storage", str(tmp_path / "runs"), *arguments)
    assert_mistake(done, "--data is needed")
    assert "`dpmpp demo`" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "name"),
    [(["demo"], "demo"), (["demo", "--config", "proof"], "proof"), (["train"], "demo")],
)
def test_the_demo_and_single_stages_need_no_data(
    command: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPMPP_CONFIG" if command[0] == "demo" else "X", "market1501")
    asked: list[Options] = []

    def run_pipeline(options: Options, until: str) -> dict[str, object]:
        asked.append(options)
        raise DataError("stop here")

    monkeypatch.setattr(pipeline, "run_pipeline", run_pipeline)
    assert_mistake(invoke_dpmpp(*command), "stop here")
    assert [(options.data, options.config) for options in asked] == [(None, name)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--splits", "gallery"], "query, train"),
        (["--part", "legs"], "any, top, bottom, side"),
        (["occlusion.backgrounds=/nowhere/streets"], "/nowhere/streets"),
    ],
)
def test_a_synthesis_is_refused(arguments: list[str], says: str, tmp_path: Path) -> None:
    places = ["--out", str(tmp_path / "out"), "--storage", str(tmp_path / "runs")]
    assert_mistake(invoke_dpmpp("synthesize", *places, *arguments), says)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["search", "--index", "/nowhere", "--query", "x.jpg"], "x.jpg"),
        (["index", "info", "--index", "/nowhere"], "not an index"),
    ],
)
def test_a_search_is_refused(command: list[str], says: str) -> None:
    assert_mistake(invoke_dpmpp(*command), says)


def test_a_name_that_an_index_does_not_have_is_refused(tmp_path: Path) -> None:
    version = ModelVersion(weights_sha256="a" * 64, spaces={"visual": 4})
    index = GalleryIndex.create(tmp_path / "index", version, "m")
    index.add_names([Sighting("", "anna")])
    for option in ("--pid", "--person"):
        done = invoke_dpmpp("index", "delete", "--index", str(index.folder), option, "Anna")
        assert_mistake(done, "the index has no such name; did you mean 'anna'?")


def test_data_check_reports_as_json(small_demo: Path) -> None:
    done = invoke_dpmpp("data", "check", str(small_demo), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["counts"]["train"]["identities"] == 8
