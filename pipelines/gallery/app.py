"""Serve the web app: Streamlit runs `app_page.py` until it is stopped."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from dpmpp_core.data.files import resolve_path
from dpmpp_core.errors import ArgumentError, ConfigError, DataError
from pipelines.gallery.index import open_index
from pipelines.gallery.search import require_sketches
from pipelines.registry.models import read_model_version, resolve_model_source

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("app_page.py")
UPLOAD_MB = 64
GRACE_SECONDS = 10.0  # to end in
SETTINGS = {
    "server.headless": "true",  # opens no browser
    "server.fileWatcherType": "none",
    "server.maxUploadSize": str(UPLOAD_MB),
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "theme.base": "light",
    "theme.primaryColor": "#0a5aa8",
}


def serve_app(
    index: str, model: str | None, host: str, port: int, approximate: bool = False
) -> dict[str, Any]:
    """Serve the app until Ctrl-C or SIGTERM.

    Raises:
        ConfigError: Streamlit is not installed.
        ArgumentError: not a port number.
        DataError: the port is in use.
        UserError: the index or its model, checked before anything is served.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise ConfigError("the app needs Streamlit: pip install 'dpmpp[app]'")
    if not 0 < port < 65536:
        raise ArgumentError(f"--port {port}: a number from 1 to 65535 is needed")
    uri = resolve_path(index)
    gallery = open_index(uri)
    if approximate:
        require_sketches(gallery, index)
    source = resolve_model_source(model or gallery.manifest.source)
    gallery.check(read_model_version(source), f"the model {source}")
    command = [sys.executable, "-m", "streamlit", "run", str(PAGE)]
    settings = SETTINGS | {"server.address": host, "server.port": str(port)}
    command += [f"--{name}={value}" for name, value in settings.items()]
    log.info("app: http://%s:%d, until Ctrl-C", host, port)
    with subprocess.Popen([*command, "--", uri, source, *["approximate"] * approximate]) as server:
        try:
            code = server.wait()
        except KeyboardInterrupt:
            server.terminate()
            try:
                server.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:  # Streamlit may wait for open pages
                server.kill()
            return {"served": uri}
    if code:
        raise DataError(f"the app ended at once: is port {port} in use? --port names another")
    return {"served": uri}
