"""Files of a data folder, local or S3: list them once, read them by relative path.

A root is a local folder or `s3://bucket/prefix`. S3 is configured by the usual environment
variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, ...).
A path is always relative to the root, with `/` between its parts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pyarrow import fs

from dpmpp_core.data.patience import patient
from dpmpp_core.errors import DataError

log = logging.getLogger(__name__)

S3_TIMEOUT = 30.0  # seconds, for one connection or request
# Faults of one file; any other fault (too many open files, network down) is the machine's.
_FILE_FAULTS = {
    errno.EACCES, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT,
    errno.ENOTDIR, errno.EPERM, errno.ESTALE,
}  # fmt: skip
# Files that systems and programs leave next to the data: hidden ones, those of network storages
# (Synology, QNAP), recycle bins, snapshots, thumbnails.
LITTER = re.compile(
    r"\..*|@eaDir|@Recycle|@Recently-Snapshot|#recycle|#snapshot|\$RECYCLE\.BIN|__MACOSX|"
    r"System Volume Information|lost\+found|(eh)?Thumbs.*\.db|desktop\.ini",
    re.IGNORECASE,
)
_BUCKET = re.compile(r"[\w.-]+")  # no login, port or parameters


class FileStat(NamedTuple):
    """One file of a listing."""

    path: str  # relative to the root
    size: int  # bytes
    mtime_ns: int  # time of the last change, nanoseconds since 1970


class Rejected(NamedTuple):
    """Something that does not become an image of the data set: one row of the quarantine."""

    path: str  # relative to the root; a file, a folder, or a line of a list file (`list.txt:12`)
    reason: str  # one word to count by, such as `misnamed`
    detail: str  # a sentence for people


@dataclass(frozen=True)
class FileListing:
    """What a root holds: regular files by path, and what could not be listed.

    Attributes:
        root: as given.
        files: without those that a system or program left there, see `LITTER`.
        problems: what could not be listed.
        litter: number of files and folders that were left out as litter.
    """

    root: str
    files: list[FileStat]
    problems: list[Rejected]
    litter: int = 0


def resolve_path(root: str) -> str:
    """Return a folder as an absolute path, for other processes; a URI is left unchanged."""
    return root if "://" in root else str(Path(root).expanduser().absolute())


def list_files(root: str) -> FileListing:
    """List every file below `root`, following symbolic links, sorted by path.

    Of an S3 object pyarrow returns size and time of change (whole seconds), not the etag: one that
    is replaced by another of the same size within a second looks unchanged. Problems have the
    reasons `symlink_loop`, `broken_link`, `unreadable_folder`, `unreadable`, `not_a_file` (a pipe,
    a device), `not_utf8` (the name) and `empty_folder`. Raises DataError if the root is missing,
    not a folder, or cannot be read.
    """
    root = os.fspath(root)
    files, problems, litter = _list_s3(root) if _is_s3(root) else _list_local(root)
    if litter:
        log.info("%s: %d files and folders of the system or of programs are left out", root, litter)
    return FileListing(root, sorted(files), sorted(problems), litter)


def listing_fingerprint(listing: FileListing) -> str:
    """Return a SHA-256 (hex) of paths, sizes, change times and problems."""
    digest = hashlib.sha256()
    for row in (*listing.files, *listing.problems):
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def read_bytes(root: str, path: str, limit: int | None = None) -> bytes:
    """Read the file at `path` below `root`; at most `limit` bytes.

    Raises DataError if the path leaves the root or the file cannot be read. Faults of the machine
    or the network stay OSError, so that they are not taken for a bad file.
    """
    if not is_inside(path):
        raise DataError(f"{path!r} leads out of the data folder {root}")
    try:
        if _is_s3(root):
            return _read_s3(root, path, limit)
        where = os.path.join(root, path)
        if not stat.S_ISREG(os.stat(where).st_mode):  # to open a pipe would wait for ever
            raise DataError(f"{path} in {root} is not a file")
        with open(where, "rb") as file:
            return file.read(-1 if limit is None else limit)
    except OSError as error:
        if error.errno not in _FILE_FAULTS:
            raise
        reason = os.strerror(error.errno)
        raise DataError(f"{path} in {root} cannot be read: {reason}") from error


@patient
def _read_s3(root: str, path: str, limit: int | None) -> bytes:
    filesystem, base = connect_s3(root)
    with filesystem.open_input_file(f"{base}/{path}") as stream:
        return stream.read(limit)


@contextmanager
def write_atomically(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a file to write next to `path`, which replaces it when the block succeeds.

    A reader sees the old file or the new one, never a part. Missing folders are created. With
    `durable` the data reach the disk first, so that this also holds after a loss of power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if durable:
            _flush(partial)
        os.replace(partial, path)
        if durable:
            _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)  # a full disk must get its space back


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `out` when the block succeeds; else nothing is left.

    Raises DataError if `out` is not an empty or absent folder.
    """
    ensure_empty_dir(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def ensure_writable(folder: Path) -> None:
    """Raise DataError if a folder cannot be written to, or not be created."""
    place = Path(folder).expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise DataError(
            f"nothing can be written to {folder}: {reason}; name another place"
        ) from None


def ensure_empty_dir(out: Path) -> None:
    """Raise DataError if `out` is not an empty or absent folder that can be written."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; name a new or empty folder")
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out}: the folder is not empty; name a new one or empty it first")
    ensure_writable(out)


def is_inside(path: str) -> bool:
    """Return whether a relative path stays below its root, without `.`, `..` and empty parts."""
    return all(part not in ("", ".", "..") for part in path.split("/")) and "\0" not in path


def _list_local(root: str) -> tuple[list[FileStat], list[Rejected], int]:
    try:
        root.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name of the data folder {root!r} is not UTF-8; rename it") from None
    try:
        info = os.stat(root)
        os.scandir(root).close()
    except OSError as error:
        what = error.strerror
        raise DataError(f"the data folder {root} cannot be read: {what}; check the path") from error
    files: list[FileStat] = []
    problems: list[Rejected] = []
    litter = 0
    # Folders still to visit, each with the identities (device, inode) of the folders around it.
    todo: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ((info.st_dev, info.st_ino),))]
    while todo:
        folder, around = todo.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as listing:
                entries = list(listing)
        except OSError as error:
            problems.append(Rejected(folder, "unreadable_folder", f"{error.strerror}"))
            continue
        if not entries and folder:
            problems.append(Rejected(folder, "empty_folder", "the folder holds nothing"))
        for entry in entries:
            if LITTER.fullmatch(entry.name):
                litter += 1
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            result = _inspect_entry(path, entry, around)
            if isinstance(result, FileStat):
                files.append(result)
            elif isinstance(result, Rejected):
                problems.append(result)
            else:
                todo.append((path, (*around, result)))
    return files, problems, litter


def _inspect_entry(
    path: str, entry: os.DirEntry[str], around: tuple[tuple[int, int], ...]
) -> FileStat | Rejected | tuple[int, int]:
    """Return a file, a problem, or the identity of a folder to visit."""
    try:
        path.encode()
    except UnicodeEncodeError:
        readable = os.fsencode(path).decode("utf-8", "backslashreplace")
        return Rejected(readable, "not_utf8", "the name is not UTF-8; rename it")
    try:
        info = entry.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return Rejected(path, "symlink_loop", "the link leads back to itself")
        if error.errno == errno.ENOENT:
            return Rejected(path, "broken_link", "what the link points at does not exist")
        return Rejected(path, "unreadable", f"{error.strerror}")
    identity = (info.st_dev, info.st_ino)
    if stat.S_ISREG(info.st_mode):
        return FileStat(path, info.st_size, info.st_mtime_ns)
    if not stat.S_ISDIR(info.st_mode):
        return Rejected(path, "not_a_file", "a pipe, socket or device, not a file")
    if identity in around:
        return Rejected(path, "symlink_loop", "the link leads back to a folder that holds it")
    return identity


def _list_s3(root: str) -> tuple[list[FileStat], list[Rejected], int]:
    filesystem, base = connect_s3(root)
    try:
        infos = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
    except OSError as error:
        raise DataError(
            f"{root} cannot be listed: {error}; check the bucket, the prefix, the credentials and "
            "AWS_ENDPOINT_URL"
        ) from error
    files: list[FileStat] = []
    problems: list[Rejected] = []
    parents = {os.path.dirname(info.path) for info in infos}
    litter = 0
    for info in infos:
        path = info.path[len(base) + 1 :]
        if any(LITTER.fullmatch(part) and part not in (".", "..") for part in path.split("/")):
            litter += 1
        elif not is_inside(path):
            problems.append(Rejected(path, "unreadable", "the key has empty, `.` or `..` parts"))
        elif info.type == fs.FileType.File:
            files.append(FileStat(path, info.size, info.mtime_ns or 0))
        elif info.path not in parents:
            problems.append(Rejected(path, "empty_folder", "the folder holds nothing"))
    return files, problems, litter


def _is_s3(root: str) -> bool:
    scheme, separator, _ = root.partition("://")
    if separator and scheme != "s3":
        raise DataError(f"{root}: a data folder is a local path or s3://bucket/prefix")
    return bool(separator)


def connect_s3(uri: str) -> tuple[fs.S3FileSystem, str]:
    """Return the file system and `bucket/prefix` of an `s3://` URI; DataError if out of reach."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise DataError(f"{uri} names no bucket; write s3://bucket/prefix")
    if not _BUCKET.fullmatch(bucket) or "?" in prefix:
        raise DataError(
            f"{uri}: write s3://bucket/prefix and nothing else; credentials come from "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the server from AWS_ENDPOINT_URL"
        )
    return _connect(bucket, s3_endpoint()), f"{bucket}/{prefix}".rstrip("/")


def s3_endpoint() -> str:
    """Return the S3 server of the environment; empty = that of AWS."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


@lru_cache(maxsize=8)
def _connect(bucket: str, endpoint: str) -> fs.S3FileSystem:
    """Return one client per bucket and process, without an endpoint AWS in the bucket's region."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    address = urlsplit(endpoint if "://" in endpoint or not endpoint else f"https://{endpoint}")
    try:
        if not endpoint and region is None:
            region = fs.resolve_s3_region(bucket)
        return fs.S3FileSystem(
            region=region or "us-east-1",
            scheme=address.scheme or "https",
            endpoint_override=address.netloc + address.path.rstrip("/") or None,
            tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE") or None,
            connect_timeout=S3_TIMEOUT,
            request_timeout=S3_TIMEOUT,
        )
    except OSError as error:
        raise DataError(
            f"s3://{bucket} cannot be reached: {error}; check the bucket's name, the network and "
            "AWS_ENDPOINT_URL"
        ) from error
