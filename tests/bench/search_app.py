"""The picture of the web app in the README: a hidden person is looked for among generated people.

    python -m tests.bench.search_app --model FOLDER --data DIR [--query NAME]

DIR is a data set like that of `make demo`, whose gallery is indexed and whose queries calibrate it;
FOLDER the model learnt there. Needs Chromium on the PATH. Writes `results/search-app.jpg`.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.bench.timing import RESULTS
from tests.support.s3_server import free_port

DPMPP = str(Path(sys.executable).with_name("dpmpp"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--query", help="File name of a query. Default: the first.")
    asked = parser.parse_args()
    queries = Path(asked.data) / "query"
    query = queries / asked.query if asked.query else min(queries.glob("*.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        index = ["--index", f"{folder}/index", "--data", asked.data]
        build = [*index, "--model", asked.model, "--split", "gallery"]
        subprocess.run([DPMPP, "index", "build", *build], check=True)
        subprocess.run([DPMPP, "index", "calibrate", *index], check=True)
        port = free_port()
        server = subprocess.Popen([DPMPP, "app", *index[:2], "--port", str(port)])
        try:
            wait_for(port)
            picture(f"http://127.0.0.1:{port}", query, RESULTS / "search-app.jpg")
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


def wait_for(port: int) -> None:
    """Until something listens there; TimeoutError after two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    raise TimeoutError("the app does not answer")


def picture(address: str, query: Path, out: Path) -> None:
    """Drop the query on the page, and keep what it shows."""
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(120_000)
        page.goto(address)
        page.set_input_files("input[type=file]", str(query))
        page.wait_for_selector("figure.hit")
        page.wait_for_timeout(2_000)  # for pictures and fonts
        page.screenshot(path=str(out), type="jpeg", quality=85)
        opened.close()


if __name__ == "__main__":
    main()
