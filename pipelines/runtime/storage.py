"""Storage of results: a local folder or S3.

A key is a path below the storage's root. A folder is *committed* when it holds its marker file,
which is written last; nothing else decides whether a piece of work is done.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pyarrow import fs

from dpmpp_core.data.files import connect_s3, ensure_writable, s3_endpoint, write_atomically
from dpmpp_core.data.patience import patient
from dpmpp_core.errors import ConfigError, DataError
from dpmpp_core.redaction import one_line
from pipelines.runtime.lease import hold_lease

log = logging.getLogger(__name__)

MARKER = "stage.json"
SQLITE = "sqlite:///"
_MISSPELT = re.compile(r"(s3a?|gs|https?|file):?//?[^/]", re.IGNORECASE)  # not `://`


def sqlite_uri(
    folder: Path,
    advice: str = "name another --storage, or an MLflow server with --tracking-uri",
) -> str:
    """Return the URI of the tracking database in a folder.

    Args:
        folder: its path becomes part of the URI.
        advice: what to do where that is not possible, in the options of the command.

    Raises:
        ConfigError: characters that mean something else in a URI, which MLflow does not unquote.
    """
    if set("%?#") & set(str(folder)):
        raise ConfigError(
            f"the folder {folder} cannot hold MLflow's database, as its path has %, ? or #: "
            f"{advice}"
        )
    return f"{SQLITE}{folder}/mlflow.db"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite URI, which need not be there; None for any other URI."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def shorten_path(path: str) -> str:
    """Return a local path relative to the working folder where it is in it, else as it is."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def cache_folder() -> Path:
    """Return the folder of this node's copies, which only this user may read and write.

    Raises:
        DataError: it belongs to somebody else, or others may write to it.
    """
    folder = Path(tempfile.gettempdir()) / f"dpmpp-cache-{os.geteuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
        raise DataError(
            f"{folder} is not a private folder of this user, so the copies in it cannot be "
            "trusted: remove it, or name another place with TMPDIR"
        )
    return folder


class Storage:
    """A root for results.

    Args:
        uri: A folder, or `s3://bucket/prefix` (environment: AWS_ACCESS_KEY_ID,
            AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION).
    """

    def __init__(self, uri: str) -> None:
        self.is_local = "://" not in uri
        if self.is_local and _MISSPELT.match(uri):
            raise ConfigError(f"the storage {uri} is neither a folder nor s3://bucket/prefix")
        if self.is_local:
            self.uri = str(Path(uri).expanduser().absolute())
            if Path(self.uri).exists() and not Path(self.uri).is_dir():
                raise ConfigError(f"the storage {self.uri} is no folder: name a new or another one")
            self.filesystem: fs.FileSystem = fs.LocalFileSystem()
            self.base = self.uri
        else:
            self.uri = uri.rstrip("/")
            self.filesystem, self.base = connect_s3(self.uri)

    def ensure_writable(self) -> None:
        """Raise DataError if nothing can be written to the storage."""
        if self.is_local:
            ensure_writable(Path(self.uri))
            return
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.write(probe, b"")
            self.delete(probe)
        except OSError as error:
            raise DataError(
                f"nothing can be written to {self.uri}: {one_line(str(error))[:300]}; check the "
                "bucket and the rights of its credentials"
            ) from error

    def path(self, key: str) -> str:
        """Return the key's path in `self.filesystem`."""
        return f"{self.base}/{key}"

    def location(self, key: str) -> str:
        """Return the key's path or URI as a user writes it."""
        return f"{self.uri}/{key}"

    def short_location(self, key: str) -> str:
        """Return the location of a key, relative to the working folder where it is in it."""
        return shorten_path(self.location(key)) if self.is_local else self.location(key)

    def marker(self, key: str) -> dict[str, Any] | None:
        """Return the marker of a committed folder, or None."""
        return self.read_json(f"{key}/{MARKER}")

    def read_json(self, key: str) -> dict[str, Any] | None:
        """Return a JSON object, or None where there is no such file.

        Raises:
            DataError: The file holds something else.
        """
        data = self.read(key)
        if data is None:
            return None
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise DataError(
                f"{self.location(key)} is damaged: delete its folder, and the same command makes "
                "it again"
            )
        return value

    @patient
    def read(self, key: str) -> bytes | None:
        """Return the bytes of a file, or None where there is none; OSError if it is unreadable."""
        try:
            with self.filesystem.open_input_file(self.path(key)) as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    @patient
    def files(self, key: str) -> list[str]:
        """Return the sorted keys of the files in a folder; none where there is no folder."""
        selector = fs.FileSelector(self.path(key), allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(f"{key}/{i.base_name}" for i in infos if i.type == fs.FileType.File)

    @patient
    def folders(self, key: str = "") -> list[str]:
        """Return the sorted names of the visible folders in a folder; none where there is none."""
        selector = fs.FileSelector(f"{self.base}/{key}".rstrip("/"), allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        names = (i.base_name for i in infos if i.type == fs.FileType.Directory)
        return sorted(name for name in names if not name.startswith("."))

    def changed_at(self, key: str) -> datetime | None:
        """Return when a file was last written, or None where there is none."""
        return self._file_info(key).mtime

    @patient
    def has_files(self) -> bool:
        """Return whether there are files below the root."""
        everything = fs.FileSelector(self.base, allow_not_found=True, recursive=True)
        infos = self.filesystem.get_file_info(everything)
        return any(info.type == fs.FileType.File for info in infos)

    @patient
    def write(self, key: str, data: bytes) -> None:
        """Write one file atomically: a reader gets the old or the new one, never a part."""
        if self.is_local:
            with write_atomically(Path(self.path(key))) as file:
                file.write_bytes(data)
        else:  # an S3 object appears whole or not at all
            with self.filesystem.open_output_stream(self.path(key)) as stream:
                stream.write(data)

    @contextmanager
    def commit(self, key: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Fill a folder and its marker: nothing appears under `key` unless the block ends well.

        Yields:
            A local folder to write into, and the dictionary that becomes the marker.
        """
        if self.is_local:
            target = Path(self.path(key))
            partial = target.with_name(f".{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
            partial.mkdir(parents=True)
        else:
            partial = Path(tempfile.mkdtemp(prefix="dpmpp-"))
        marker: dict[str, Any] = {}
        try:
            yield partial, marker
            marker["files"] = _list_sizes(partial)
            data = json.dumps(marker, indent=2, sort_keys=True).encode()
            if self.is_local:
                (partial / MARKER).write_bytes(data)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(partial, target)
            else:
                self._upload(partial, key)
                self.write(f"{key}/{MARKER}", data)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @patient
    def _upload(self, folder: Path, key: str) -> None:
        self.delete(key)
        fs.copy_files(str(folder), self.path(key), fs.LocalFileSystem(), self.filesystem)

    def is_whole(self, key: str, marker: dict[str, Any]) -> bool:
        """Return whether the files that a folder's marker lists are there, with their sizes."""
        everything = fs.FileSelector(self.path(key), allow_not_found=True, recursive=True)
        start = len(self.path(key)) + 1
        found = {
            i.path[start:]: i.size
            for i in self._list_infos(everything)
            if i.type == fs.FileType.File
        }
        return all(found.get(name) == size for name, size in marker.get("files", {}).items())

    @patient
    def _list_infos(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return self.filesystem.get_file_info(selector)

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Let one process at a time build what `key` names; others wait, and say so.

        The lock is the system's, so it ends with a killed process. On S3 it is a lease, which runs
        out a minute after its holder was killed.
        """
        name = f".locks/{key.replace('/', '-')}.lock"
        if not self.is_local:
            bucket, _, path = self.path(name).partition("/")
            with hold_lease(bucket, path):
                yield
            return
        file = Path(self.path(name))
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s is under way in another process: waiting for it", key)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def fetch(self, key: str) -> Path:
        """Return a local folder with the contents of a committed one; on S3, this node's copy."""
        if self.is_local:
            return Path(self.path(key))
        marker = self.read(f"{key}/{MARKER}")  # always: it may have been replaced
        if marker is None:
            raise DataError(f"{self.location(key)} is gone: the same command makes it again")
        cache = self.cached(key) / hashlib.sha256(marker).hexdigest()[:16]
        if not (cache / MARKER).is_file():
            cache.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=cache.parent))
            try:
                self._download(key, partial)
                os.replace(partial, cache)
            except OSError:
                if not (cache / MARKER).is_file():  # else another process was faster
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return cache

    def fetch_file(self, key: str) -> Path:
        """Return a local file with the contents of an immutable one; on S3, this node's copy.

        Raises:
            DataError: There is no such file.
        """
        return Path(self.path(key)) if self.is_local else self._copy(key, self.cached(key))

    def fetch_current(self, key: str) -> Path:
        """Return a local file with the present contents of one; a copy is kept until it changes.

        Raises:
            DataError: There is no such file.
        """
        if self.is_local:
            return Path(self.path(key))
        state = self._file_info(key)
        cache = self.cached(key)
        return self._copy(key, cache.parent / f"{state.size}-{state.mtime_ns}" / cache.name)

    def fetch_described(self, card: str, file: str) -> Path:
        """Return a local folder with a card and the file of which it holds the hash.

        The card is always read, and names the copy; whoever loads the file compares its hash.

        Raises:
            DataError: There is no such card or file.
        """
        if self.is_local:
            return Path(self.uri)
        data = self.read(card)
        if data is None:
            raise DataError(f"{self.location(card)} does not exist: not a saved model")
        folder = self.cached("") / hashlib.sha256(data).hexdigest()[:16]
        with write_atomically(folder / card) as copy:
            copy.write_bytes(data)
        return self._copy(file, folder / file).parent

    @patient
    def _file_info(self, key: str) -> fs.FileInfo:
        return self.filesystem.get_file_info(self.path(key))

    def _copy(self, key: str, cache: Path) -> Path:
        """Fetch a file of S3 into the cache, unless it is there."""
        if not cache.is_file():
            data = self.read(key)
            if data is None:
                raise DataError(f"{self.location(key)} is gone: the same command makes it again")
            with write_atomically(cache) as file:  # others fetch it at the same time
                file.write_bytes(data)
        return cache

    def cached(self, key: str) -> Path:
        """Return the path of this node's copy of a key on S3, of the server in use."""
        server = hashlib.sha256(s3_endpoint().encode()).hexdigest()[:8]
        return cache_folder() / server / self.path(key)

    @patient
    def _download(self, key: str, folder: Path) -> None:
        fs.copy_files(self.path(key), str(folder), self.filesystem, fs.LocalFileSystem())

    @patient
    def delete(self, key: str) -> None:
        """Remove a file, or a folder and all in it; no error where there is none."""
        kind = self.filesystem.get_file_info(self.path(key)).type
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path(key))
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(self.path(key))
        if not self.is_local:
            shutil.rmtree(self.cached(key), ignore_errors=True)


def _list_sizes(folder: Path) -> dict[str, int]:
    """Return the sizes in bytes of all files below a folder, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
