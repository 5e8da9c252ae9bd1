"""The web app, driven in a real browser: a picture is dropped on it, people are found."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dpmpp_core.index import ROW_SCHEMA, GalleryIndex
from dpmpp_core.models.reid import load_model
from pipelines.registry.models import read_model_version
from tests.support.cli import DPMPP, TIMEOUT_S
from tests.support.models import saved_model
from tests.support.s3_server import free_port

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page of a headless browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    pytest.importorskip("streamlit", reason="no Streamlit: pip install 'dpmpp[app]'")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(1000 * TIMEOUT_S)
        yield page
        opened.close()


@pytest.fixture(scope="module")
def index(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    model = saved_model(folder / "model")
    index = GalleryIndex.create(folder / "index", read_model_version(str(model)), str(model))
    images = sorted((small_demo / "bounding_box_test").glob("*.jpg"))
    count = len(images)
    columns = {
        "image": list(map(str, images)),
        "sha256": [hashlib.sha256(image.read_bytes()).hexdigest() for image in images],
        "bytes": [1] * count, "mtime_ns": [1] * count, "pid": [None] * count,
        "camid": [int(image.name.split("_")[1][1]) for image in images], "time": [None] * count,
    }  # fmt: skip
    made = load_model(model).embed(images)
    index.append(index.manifest.model, pa.table(columns, schema=ROW_SCHEMA), made.features)
    index.compact(approximate=True)
    return folder / "index"


@pytest.fixture(scope="module")
def address(index: Path) -> Iterator[str]:
    port = free_port()
    log = index.with_name("log")
    with log.open("w") as file:
        server = subprocess.Popen(
            [DPMPP, "app", "--index", str(index), "--port", str(port), "--approximate"],
            stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline and server.poll() is None and not listens(port):
            time.sleep(0.3)
        assert listens(port), f"the app does not answer: {log.read_text()}"
        yield f"http://127.0.0.1:{port}"
        server.terminate()  # not SIGINT, which a job in the background may ignore
        assert server.wait(TIMEOUT_S) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
        assert not listens(port)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_picture_is_dropped_and_people_are_found(
    page: Any, address: str, small_demo: Path, tmp_path: Path
) -> None:
    foreign: list[str] = []
    page.on("request", lambda r: None if ours(r.url, address) else foreign.append(r.url))
    page.goto(address)
    query = next((small_demo / "query").glob("*.jpg"))
    page.set_input_files("input[type=file]", str(query))
    page.wait_for_selector("figure.hit")
    cameras = [text for text in page.locator("figure.hit").all_inner_texts() if "camera" in text]
    images = len(list((small_demo / "bounding_box_test").glob("*.jpg")))
    assert len(cameras) == min(20, images)
    assert page.locator(".query img").get_attribute("src").startswith("data:image/")
    assert page.locator("figure.hit img").first.evaluate("i => i.naturalWidth") > 0
    assert np.diff(scores(page)).max() <= 0
    page.get_by_text(f"Search: approximate: {images} images scored").wait_for()

    page.locator("[data-testid=stMultiSelect] input").click()
    page.get_by_role("option", name="2", exact=True).click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('figure.hit')]"
        ".every(hit => hit.innerText.includes('camera 2'))"
    )

    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no picture")
    page.set_input_files("input[type=file]", str(broken))
    page.wait_for_selector("[data-testid=stAlert]")
    assert "Traceback" not in page.content()
    assert not foreign, "the app asked other machines"


def scores(page: Any) -> list[float]:
    text = " ".join(page.locator("figure.hit").all_inner_texts())
    return [float(number) for number in re.findall(r"score (-?[0-9.]+)", text)]


def ours(url: str, address: str) -> bool:
    return url.startswith((address, address.replace("http", "ws"), "data:", "blob:"))
