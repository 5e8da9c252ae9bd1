"""One model in MLflow's registry: its versions, their files, and the names that point at them.

`candidate` is what was registered last, `champion` what is served, `previous` the champion before.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from dpmpp_core.config.sections import MODEL_NAME
from dpmpp_core.errors import ConfigError, suggest
from pipelines.runtime.mlflow_checks import QUICK_REQUESTS, check_database, translate_errors
from pipelines.runtime.storage import sqlite_file
from pipelines.runtime.tracking import open_client, without_login

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
WEIGHTS, FILES = "weights_sha256", "files_sha256"
LOADING_ARTIFACT = "registered_model_meta"  # MLflow adds it to a download
log = logging.getLogger(__name__)


class Registry:
    """A registered model.

    Args:
        uri: tracking URI, as that of `Tracking`.
        name: of the registered model.

    Raises:
        ConfigError: the registry has no such model.
        TrackingError: it does not answer.
    """

    def __init__(self, uri: str, name: str) -> None:
        if not re.fullmatch(MODEL_NAME, name):
            raise ConfigError(f"{name!r} cannot be the name of a registered model")
        for variable, value in QUICK_REQUESTS.items():  # a promotion ends within seconds
            os.environ.setdefault(variable, value)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for each try
        self.uri, self.name = without_login(uri), name
        file = sqlite_file(uri)
        if file is not None and not file.is_file():
            raise ConfigError(
                f"no registry at {uri}: `dpmpp run` creates one; name another in the environment "
                "variable DPMPP_TRACKING_URI"
            )
        mlflow.set_tracking_uri(self.uri)
        with translate_errors(self.uri):
            check_database(self.uri)
            self.client = open_client(self.uri)
            if not self.client.search_registered_models(f"name = '{name}'"):
                names = [model.name for model in self.client.search_registered_models()]
                hint = suggest(name, names)
                raise ConfigError(f"the registry {self.uri} has no model {name!r}{hint}")

    def aliases(self) -> dict[str, int]:
        """Return alias -> version number, as they are now."""
        aliases = self.client.get_registered_model(self.name).aliases
        return {alias: int(version) for alias, version in aliases.items()}

    def version(self, number: int) -> ModelVersion:
        """Return a version; raise ConfigError if there is none."""
        try:
            return self.client.get_model_version(self.name, str(number))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ConfigError(f"{self.name} has no version {number}") from None

    def set_alias(self, alias: str, number: int | None) -> None:
        """Set an alias to a version, or delete it (None); one call, one transaction."""
        if number is not None:
            self.client.set_registered_model_alias(self.name, alias, str(number))
        elif alias in self.aliases():
            self.client.delete_registered_model_alias(self.name, alias)

    def set_tag(self, number: int, key: str, value: str) -> None:
        """Set a tag of a version."""
        self.client.set_model_version_tag(self.name, str(number), key, value)

    def download(self, number: int, folder: Path) -> Path:
        """Download all files of a version below `folder`; return their folder."""
        target = folder / f"v{number}"
        target.mkdir()
        files = mlflow.artifacts.download_artifacts(
            f"models:/{self.name}/{number}", dst_path=str(target), tracking_uri=self.uri
        )
        return Path(files)


def hash_files(folder: Path) -> str:
    """Return the SHA-256 (hex) of names and contents of a version's files, in name order."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != LOADING_ARTIFACT:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{content} {name}\n".encode())
    return digest.hexdigest()


def measure_megabytes(folder: Path) -> float:
    """Return the size of all files, 10^6 bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
