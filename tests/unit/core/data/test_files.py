"""Listing and reading data folders: odd local trees, and S3 over a real HTTP connection."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from dpmpp_core.data.files import (
    _connect,
    is_inside,
    list_files,
    listing_fingerprint,
    read_bytes,
    write_atomically,
)
from dpmpp_core.errors import DataError


def reasons(root: Path) -> dict[str, str]:
    return {problem.path: problem.reason for problem in list_files(str(root)).problems}


def test_files_are_relative_sorted_and_measured(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/2.txt").write_bytes(b"four")
    (tmp_path / "a.txt").write_bytes(b"")
    listing = list_files(str(tmp_path))
    assert [(file.path, file.size) for file in listing.files] == [("a.txt", 0), ("b/2.txt", 4)]
    assert listing.files[1].mtime_ns == (tmp_path / "b/2.txt").stat().st_mtime_ns
    assert listing.problems == []


def test_links_are_followed_and_loops_named(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    real.mkdir()
    (real / "x.jpg").write_bytes(b"x")
    root = tmp_path / "root"
    (root / "deep/er").mkdir(parents=True)
    (root / "linked").symlink_to(real)
    (root / "deep/er/up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "gone").symlink_to(root / "nothing")
    assert [file.path for file in list_files(str(root)).files] == ["linked/x.jpg"]
    assert reasons(root) == {
        "deep/er/up": "symlink_loop",
        "self": "symlink_loop",
        "gone": "broken_link",
    }


def test_empty_folders_pipes_and_names_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.jpg"), "wb"):
        pass
    assert reasons(tmp_path) == {
        "empty": "empty_folder",
        "pipe.jpg": "not_a_file",
        "\\xff.jpg": "not_utf8",
    }


def test_an_unreadable_folder_does_not_stop_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(b"x")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = list_files(str(tmp_path))
    assert [file.path for file in listing.files] == ["open/x.jpg"]
    assert [(p.path, p.reason) for p in listing.problems] == [("shut", "unreadable_folder")]


@pytest.mark.parametrize("root", ["/no/such/folder", "gs://bucket/x", "s3://"])
def test_a_root_that_cannot_be_used_is_a_data_error(root: str) -> None:
    with pytest.raises(DataError, match=root.removesuffix("//")):
        list_files(root)


def test_a_file_as_root_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"data\.zip"):
        list_files(str(tmp_path / "data.zip"))


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc/hostname", "a//b", "."])
def test_reading_never_leaves_the_root(tmp_path: Path, path: str) -> None:
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    assert not is_inside(path)
    with pytest.raises(DataError, match="leads out"):
        read_bytes(str(tmp_path / "root"), path)


def test_a_missing_file_is_a_data_error_but_a_machine_fault_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg"):
        read_bytes(str(tmp_path), "gone.jpg")

    def exhausted(*_: object) -> None:
        raise OSError(24, "Too many open files")

    (tmp_path / "here.jpg").touch()
    monkeypatch.setattr("builtins.open", exhausted)
    with pytest.raises(OSError, match="Too many"):
        read_bytes(str(tmp_path), "here.jpg")


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, durable: bool) -> None:
    target = tmp_path / "new" / "x.json"
    with write_atomically(target, durable) as file:
        file.write_text("old")
        assert not target.exists()
    with pytest.raises(RuntimeError), write_atomically(target, durable) as file:
        file.write_text("ne")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_the_fingerprint_sees_every_change(tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    file.write_bytes(b"1")
    os.utime(file, ns=(1, 1))
    seen = [listing_fingerprint(list_files(str(tmp_path)))]
    assert listing_fingerprint(list_files(str(tmp_path))) == seen[0]
    os.utime(file, ns=(2, 2))
    seen.append(listing_fingerprint(list_files(str(tmp_path))))
    file.write_bytes(b"22")
    os.utime(file, ns=(2, 2))
    seen.append(listing_fingerprint(list_files(str(tmp_path))))
    file.rename(tmp_path / "y.jpg")
    seen.append(listing_fingerprint(list_files(str(tmp_path))))
    (tmp_path / "empty").mkdir()
    seen.append(listing_fingerprint(list_files(str(tmp_path))))
    assert len(set(seen)) == 5


class _Bucket(BaseHTTPRequestHandler):
    """Just enough of S3: ListObjectsV2, HEAD and GET with ranges, of one bucket in memory."""

    objects: dict[str, bytes]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        if bucket != "data":
            self._send(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        elif not key:
            prefix = parse_qs(url.query).get("prefix", [""])[0]
            self._send(200, self._listing(prefix), {"Content-Type": "application/xml"})
        elif key not in self.objects:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            body = self.objects[key]
            span = self.headers.get("Range")
            if span is None:
                self._send(200, body)
                return
            first, last = span.removeprefix("bytes=").split("-")
            part = body[int(first) : int(last) + 1]
            total = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
            self._send(206, part, {"Content-Range": total})

    do_HEAD = do_GET

    def _listing(self, prefix: str) -> bytes:
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(body)}</Size>"
            "<LastModified>2024-01-02T03:04:05.000Z</LastModified></Contents>"
            for key, body in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        return f"<ListBucketResult>{items}</ListBucketResult>".encode()

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        modified = {"Last-Modified": "Tue, 02 Jan 2024 03:04:05 GMT", "ETag": '"1"'}
        for name, value in {**modified, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    objects: dict[str, bytes] = {}
    handler = type("Bucket", (_Bucket,), {"objects": objects})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    _connect.cache_clear()
    yield objects
    server.shutdown()
    server.server_close()


def test_s3_lists_and_reads_like_a_folder(bucket: dict[str, bytes]) -> None:
    bucket.update({"set/query/1 é.jpg": b"pixels", "set/readme.txt": b"", "other/x": b"no"})
    listing = list_files("s3://data/set/")
    assert [(file.path, file.size) for file in listing.files] == [
        ("query/1 é.jpg", 6),
        ("readme.txt", 0),
    ]
    assert listing.files[0].mtime_ns == 1704164645 * 10**9
    assert read_bytes("s3://data/set/", "query/1 é.jpg") == b"pixels"
    assert read_bytes("s3://data/set", "query/1 é.jpg", limit=3) == b"pix"


def test_s3_names_what_is_missing(bucket: dict[str, bytes]) -> None:
    bucket["set/x"] = b""
    with pytest.raises(DataError, match="s3://nowhere"):
        list_files("s3://nowhere/set")
    with pytest.raises(DataError, match=r"gone\.jpg"):
        read_bytes("s3://data/set", "gone.jpg")
    with pytest.raises(DataError, match="leads out"):
        read_bytes("s3://data/set", "../other/x")
