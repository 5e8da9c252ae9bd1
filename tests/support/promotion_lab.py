"""A real MLflow server, versions really registered on it, and a network that can fail."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
import torch
from mlflow.tracking import MlflowClient

from dpmpp_core.config import load_config
from dpmpp_core.models.reid import ReidModel, load_model, save_model, start_clip
from pipelines.inference.workers import ModelLocation
from pipelines.registry.promotion import PromotionRequest, promote, roll_back
from pipelines.registry.register import register_version
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.stages.evaluate import evaluate_model
from pipelines.workflows.options import Options
from pipelines.workflows.session import open_session, open_tracking_run, prepare_data
from tests.support.configs import SMALL
from tests.support.mlflow_server import MlflowServer

# Sixteen queries of four persons: bounds for what the small demo set can tell.
GATE: dict[str, Any] = {
    "floors": {"mAP": 0.05},
    "no_worse": {"mAP": 0.05},
    "identities": 2,
    "mask_std": 0.001,
    "reproduce": 0.005,
    "latency_ms": 60_000,
    "size_mb": 500,
}


@dataclass
class Lab:
    """Versions of a small model on a server.

    Attributes:
        model: folder of the model that others are made of.
        folder: where those and gates are written.
    """

    server: MlflowServer
    options: Options
    run: Run
    prepared: Stage
    model: Path
    folder: Path
    count: int = field(default=0)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.server.uri)

    def changed(self, name: str, change: Callable[[ReidModel], None]) -> Path:
        """A saved model with other weights; made once."""
        folder = self.folder / name
        if not folder.exists():
            model = load_model(self.model)
            with torch.no_grad():
                change(model)
            save_model(model, folder)
        return folder

    def worse(self) -> Path:
        """The model with noise on its weights."""
        return self.changed("worse", add_noise)

    def register(
        self, name: str, model: Path | None = None, run: Run | None = None, prepared: Any = None
    ) -> int:
        """Measure a model, as `dpmpp evaluate` does, and register it as `dpmpp run` does."""
        run, prepared = run or self.run, prepared or self.prepared
        model = model or self.model
        evaluated = evaluate_model(run, prepared, ModelLocation(str(model)))
        tracking = run.config.tracking.model_copy(update={"model_name": name})
        named = replace(run, config=run.config.model_copy(update={"tracking": tracking}))
        return int(register_version(named, prepared, evaluated, model).version)

    def gate(self, **changes: Any) -> str:
        """A gate's file; a change to None leaves the key out where the default means off."""
        self.count += 1
        path = self.folder / f"gate-{self.count}.yaml"
        path.write_text(json.dumps(GATE | changes))
        return str(path)

    def request(self, name: str, uri: str | None = None, **asked: Any) -> PromotionRequest:
        asked.setdefault("gate", self.gate())
        return PromotionRequest(name=name, tracking_uri=uri or self.server.uri, **asked)

    def promote(self, name: str, **asked: Any) -> dict[str, Any]:
        return promote(self.request(name, **asked))

    def roll_back(self, name: str, **asked: Any) -> dict[str, Any]:
        return roll_back(self.request(name, **asked))

    def known(self, name: str) -> bool:
        return bool(self.client.search_registered_models(f"name = '{name}'"))

    def aliases(self, name: str) -> dict[str, int]:
        found = self.client.get_registered_model(name).aliases
        return {alias: int(version) for alias, version in found.items()}

    def tickets(self, name: str) -> list[str]:
        """States of all tickets, in order."""
        found = self.client.search_model_versions(f"name = '{name}.promotions'")
        return [v.tags["state"] for v in sorted(found, key=lambda v: int(v.version))]

    def stored(self, name: str, version: int) -> Path:
        """The folder in which the server keeps a version's files."""
        found = self.client.get_model_version(name, str(version))
        model_id = found.source.rpartition("/")[2]
        (folder,) = (self.server.folder / "artifacts").glob(f"*/models/{model_id}/artifacts")
        return folder


@contextmanager
def lab(data: Path, server: MlflowServer, folder: Path) -> Iterator[Lab]:
    """A lab whose server runs already; its model is what the package's weights give untrained."""
    config = load_config("demo", SMALL)
    storage = str(folder / "runs")
    options = Options(data=str(data), overrides=SMALL, storage=storage, tracking_uri=server.uri)
    model = ReidModel(config.model, config.data, start_clip(config))
    model.start_head()
    save_model(model, folder / "start")
    with open_session(options, [config]) as (run, source, _):
        prepared = prepare_data(run, source)
        open_tracking_run(run, prepared, f"lab-{folder.name}", options.config)
        yield Lab(server, options, run, prepared, folder / "start", folder)


def add_noise(model: ReidModel) -> None:
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.numel() > 1:
            noise = torch.randn(parameter.shape, generator=draw)
            parameter += 1.5 * parameter.std() * noise


def deaden_masks(model: ReidModel) -> None:
    """The visibility head sees the same everywhere, and nothing that is occluded."""
    assert model.visibility is not None
    model.visibility.patches[-1].weight *= 1e-4
    model.visibility.patches[-1].bias[1] = -1


class Network:
    """A way to a server on which a request can be met by a fault: really HTTP, really forwarded.

    `fault` is asked about every request (method, path, JSON body): None lets it pass; `cut` closes
    the connection without an answer; `late` forwards it, then closes; a function is called first.
    """

    def __init__(self, server: MlflowServer) -> None:
        self.fault: Callable[[str, str, dict[str, Any]], str | None] = lambda *_: None
        network = self

        class Handler(BaseHTTPRequestHandler):
            def _pass(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    body = json.loads(data) if data else {}
                except ValueError:
                    body = {}
                met = network.fault(self.command, self.path, body)
                if met == "cut":
                    self.close_connection = True
                    return
                skipped = ("host", "connection", "content-length")
                headers = {k: v for k, v in self.headers.items() if k.lower() not in skipped}
                answer = requests.request(
                    self.command, server.uri + self.path, data=data, headers=headers, timeout=300
                )
                if met == "late":
                    self.close_connection = True
                    return
                self.send_response(answer.status_code)
                for key, value in answer.headers.items():
                    if key.lower() in ("content-type", "content-disposition"):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _pass

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def sets_alias(alias: str) -> Callable[[str, str, dict[str, Any]], bool]:
    """Whether a request points an alias somewhere."""

    def asked(method: str, path: str, body: dict[str, Any]) -> bool:
        return method == "POST" and path.endswith("/alias") and body.get("alias") == alias

    return asked
