"""The part of Kubernetes' API that `dpmpp deploy` asks for, in memory, over HTTP.

A stand-in: no API server is to be had from a package registry. It stores what it is given, but for
a dry run, and answers as one does; it checks nothing, and refuses what a test has it refuse.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

KINDS = ("resourcequotas", "deployments", "rayjobs", "pods")  # lists that may be empty


class KubeApi:
    """Objects by their path below the server, such as `/api/v1/namespaces/dpmpp/secrets/a`."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.has_kuberay = True
        self.refusal = ""  # what it answers to a job
        self.refused_pods: dict[str, str] = {}  # what it answers, by Ray group or component
        self.new_status: dict[str, Any] | None = None  # of what is created
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0].rstrip("/")
                if path.endswith("/log"):
                    return self._answer(200, api.objects[path], plain=True)
                if path in api.objects:
                    return self._answer(200, api.objects[path])
                inside = [v for k, v in api.objects.items() if k.rpartition("/")[0] == path]
                if inside or path.rpartition("/")[2] in KINDS:
                    return self._answer(200, {"kind": "List", "metadata": {}, "items": inside})
                self._answer(404, _status(404, f"{path} not found"))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                place, _, query = self.path.partition("?")
                metadata = body["metadata"]
                path = f"{place}/{metadata.get('name') or metadata['generateName'] + 'x'}"
                if place.endswith("/pods") and (refusal := api.refused_pods.get(body_role(body))):
                    return self._answer(403, _status(403, refusal))
                if not api.has_kuberay:
                    return self._answer(404, "404 page not found\n", plain=True)
                if api.refusal:
                    return self._answer(422, _status(422, api.refusal))
                if path in api.objects:
                    return self._answer(409, _status(409, f"{path} already exists"))
                assert "fieldValidation=Strict" in query
                if "dryRun=All" not in query:
                    if api.new_status:
                        body = body | {"status": api.new_status}
                    api.objects[path] = body
                self._answer(201, body)

            def do_DELETE(self) -> None:
                api.objects.pop(self.path.partition("?")[0])
                self._answer(200, _status(200, "deleted"))

            def _answer(self, code: int, value: Any, plain: bool = False) -> None:
                data = value.encode() if plain else json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/plain" if plain else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def kubeconfig(self, path: Path) -> Path:
        server = f"http://127.0.0.1:{self._server.server_port}"
        named = [{"name": "c", "cluster": {"server": server}}]
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        path.write_text(
            yaml.safe_dump(
                {"apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": named,
                 "contexts": [context], "users": [{"name": "u", "user": {}}]}
            )
        )  # fmt: skip
        return path

    def close(self) -> None:
        self._server.shutdown()


def body_role(pod: Any) -> str:
    labels = pod["metadata"]["labels"]
    return labels.get("ray.io/group") or labels["app.kubernetes.io/component"]


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "code": code, "message": message, "metadata": {}}
