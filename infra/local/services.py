"""Redis, PostgreSQL, S3 and MLflow as processes of this machine, started as their pods start."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import requests

HOST = "10.77.0.1"  # this machine on the cluster's bridge
POSTGRES = Path(next(iter(sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")))), "/none"))
BIN = Path(sys.executable).parent
PORTS = {"redis": 6379, "postgres": 5432, "s3": 8333, "mlflow": 5000}


class Services:
    """Servers with fresh passwords; their data and logs lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.passwords = {
            name: secrets.token_urlsafe(18)
            for name in ("redis", "postgres", "s3", "mlflow", "trainer", "ray")
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def s3(self) -> dict[str, str]:
        """The secret dpmpp-s3."""
        return {"AWS_ACCESS_KEY_ID": "dpmpp", "AWS_SECRET_ACCESS_KEY": self.passwords["s3"]}

    @property
    def mlflow_login(self) -> dict[str, str]:
        """The secret dpmpp-mlflow-login, of all jobs here: it may change what it created."""
        return {
            "MLFLOW_TRACKING_USERNAME": "trainer",
            "MLFLOW_TRACKING_PASSWORD": self.passwords["trainer"],
        }

    def start(self, name: str) -> None:
        """Start a server and wait until it responds."""
        if accepts_connections(HOST, PORTS[name]):
            raise SystemExit(f"{HOST}:{PORTS[name]} is in use: stop the other cluster first")
        log = (self.folder / f"{name}.log").open("ab")
        command, env, prefix = getattr(self, f"_{name}")()
        self._running[name] = subprocess.Popen(
            [*prefix, *map(str, command)],
            env=os.environ | env, stdout=log, stderr=log, start_new_session=True, cwd=self.folder,
        )  # fmt: skip

        def up() -> bool:
            if self._running[name].poll() is not None:
                output = (self.folder / f"{name}.log").read_text(errors="replace")[-1000:]
                raise SystemExit(f"{name} ended at its start:\n{output}")
            return accepts_connections(HOST, PORTS[name])

        wait_for(up, f"{name} on {HOST}:{PORTS[name]}", 120)
        if name == "mlflow":
            login = {"username": "trainer", "password": self.passwords["trainer"]}
            create_login(f"http://{HOST}:{PORTS[name]}", self.passwords["mlflow"], login)

    def stop(self, name: str, hard: bool = False) -> None:
        """End a server; `hard` = by SIGKILL, as if its machine were lost."""
        process = self._running.pop(name, None)
        if process is not None:
            end_session(process, signal.SIGKILL if hard else signal.SIGTERM)

    def close(self) -> None:
        """End all servers."""
        for name in [*reversed(self._running)]:
            self.stop(name)

    def _redis(self) -> tuple[list, Mapping[str, str], list[str]]:
        server = shutil.which("redis-server")
        if server is None:
            raise SystemExit("redis-server is missing: apt-get install redis-server")
        return (
            [server, "--bind", HOST, "--appendonly", "yes", "--dir", self.folder,
             "--requirepass", self.passwords["redis"]], {}, [],
        )  # fmt: skip

    def _postgres(self) -> tuple[list, Mapping[str, str], list[str]]:
        """Return the command, as the user postgres: PostgreSQL refuses to run as root."""
        data = self.folder / "postgres"
        become = ["runuser", "-u", "postgres", "--"]
        if not data.exists():
            data.mkdir()
            shutil.chown(data, "postgres")
            password = self.folder / "postgres.password"
            password.write_text(self.passwords["postgres"])
            shutil.chown(password, "postgres")
            init = [POSTGRES / "initdb", "-D", data, "-U", "mlflow", "--pwfile", password,
                    "--auth", "scram-sha-256"]  # fmt: skip
            subprocess.run(
                [*become, *map(str, init)], check=True, stdout=subprocess.DEVNULL, cwd="/"
            )
            password.unlink()
            with (data / "pg_hba.conf").open("a") as rules:
                rules.write("host all all 10.77.0.0/24 scram-sha-256\n")
        return [POSTGRES / "postgres", "-D", data, "-h", HOST, "-k", data], {}, become

    def _s3(self) -> tuple[list, Mapping[str, str], list[str]]:
        data = self.folder / "s3"
        data.mkdir(exist_ok=True)
        return (
            [BIN / "weed", "mini", f"-dir={data}", f"-ip={HOST}", f"-ip.bind={HOST}",
             "-bucket=dpmpp", "-s3.port=8333", "-master.telemetry=false", "-admin.ui=false",
             "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
             "-s3.cacheCapacityMB=32"], self.s3, [],
        )  # fmt: skip

    def _mlflow(self) -> tuple[list, Mapping[str, str], list[str]]:
        """Run the Deployment's first step, migrate; return the second, serve with logins."""
        base = f"postgresql://mlflow:{self.passwords['postgres']}@{HOST}:5432"
        if not (self.folder / "basic_auth.ini").exists():
            env = os.environ | {"PGPASSWORD": self.passwords["postgres"]}
            create = [POSTGRES / "createdb", "-h", HOST, "-U", "mlflow", "mlflow"]
            subprocess.run(create, env=env, check=True)
            (self.folder / "basic_auth.ini").write_text(
                f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {base}/mlflow\n"
                "admin_username = admin\n"
            )
        with (self.folder / "migrate.log").open("ab") as log:
            migrate = [BIN / "mlflow", "db", "upgrade", f"{base}/mlflow"]
            subprocess.run(migrate, check=True, stdout=log, stderr=log)
        env = {
            **self.s3,
            "AWS_ENDPOINT_URL": f"http://{HOST}:8333",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_BACKEND_STORE_URI": f"{base}/mlflow",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "basic_auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.passwords["mlflow"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.passwords["ray"],
        }
        return (
            [BIN / "mlflow", "server", "--host", HOST, "--port", "5000", "--workers", "1",
             "--app-name", "basic-auth", "--artifacts-destination", "s3://dpmpp/mlflow",
             "--allowed-hosts", f"{HOST}:*,localhost:*,mlflow:*"], env, [],
        )  # fmt: skip


def create_login(server: str, admin_password: str, login: Mapping[str, str]) -> None:
    """Create a login of MLflow, username and password, unless there is one of that name."""
    answer = requests.post(
        f"{server}/api/2.0/mlflow/users/create",
        json=login,
        auth=("admin", admin_password),
        timeout=30,
    )
    if not answer.ok and "RESOURCE_ALREADY_EXISTS" not in answer.text:
        raise SystemExit(f"MLflow did not create the login {login['username']}: {answer.text}")


def end_session(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """End a process that leads a session, with all processes in it."""
    try:
        os.killpg(process.pid, how)
        process.wait(timeout=20)
    except ProcessLookupError:
        pass
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=20)


def accepts_connections(host: str, port: int) -> bool:
    """Return whether something listens on a port."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def wait_for(done: Callable[[], bool], what: str, seconds: float) -> None:
    """Wait until `done` is true; raise TimeoutError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {seconds:g} s")
        time.sleep(0.3)
