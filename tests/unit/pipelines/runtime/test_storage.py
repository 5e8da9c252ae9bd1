"""Storage: a folder is there whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from dpmpp_core.errors import ConfigError, DataError
from pipelines.runtime.storage import MARKER, Storage, cache_folder
from pipelines.runtime.tracking import resolve_tracking


def test_a_committed_folder_has_its_files_and_its_marker(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "store"))
    with storage.commit("stages/a-1") as (folder, marker):
        (folder / "x.txt").write_text("x")
        marker["summary"] = {"n": 1}
        assert storage.marker("stages/a-1") is None
    marker = {"summary": {"n": 1}, "files": {"x.txt": 1}}
    assert storage.marker("stages/a-1") == marker
    assert (storage.fetch("stages/a-1") / "x.txt").read_text() == "x"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_folder_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(error), storage.commit("stages/a-1") as (folder, _):
        (folder / "x.txt").write_text("x")
        raise error
    assert storage.marker("stages/a-1") is None
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_what_a_killed_process_left_is_swept_by_the_next_commit(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    left = tmp_path / "stages" / ".a-1.partial"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    with storage.commit("stages/a-1") as (folder, _):
        assert list(folder.iterdir()) == []
    assert sorted(p.name for p in (tmp_path / "stages").rglob("*")) == ["a-1", MARKER]


def test_committing_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for name in ("old", "new"):
        with storage.commit("k") as (folder, marker):
            (folder / name).write_text(name)
            marker["name"] = name
    assert storage.marker("k") == {"name": "new", "files": {"new": 3}}
    assert not (tmp_path / "k" / "old").exists()


def test_write_replaces_a_file_whole(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a/b.json", b'{"v": 1}')
    storage.write("a/b.json", b'{"v": 2}')
    assert storage.read_json("a/b.json") == {"v": 2}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]
    assert storage.read_json("a/none.json") is None


def test_files_of_a_folder_are_listed_read_and_deleted_one_by_one(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert storage.files("parts") == [] and storage.read("parts/b") is None
    for name in ("b", "a", "folder/c"):
        storage.write(f"parts/{name}", name.encode())
    assert storage.files("parts") == ["parts/a", "parts/b"]
    assert storage.read("parts/b") == b"b"
    storage.delete("parts/a")
    assert storage.files("parts") == ["parts/b"]


def test_deleting_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.delete("nothing")
    storage.write("some/file", b"x")
    storage.delete("some")
    assert not (tmp_path / "some").exists()


def test_copies_of_remote_files_are_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder.stat().st_mode & 0o777 == 0o700 and cache_folder() == folder
    folder.chmod(0o770)
    with pytest.raises(DataError, match="not a private folder of this user"):
        cache_folder()
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="not a private folder of this user"):
        cache_folder()


def test_copies_of_two_servers_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    storages = []
    for port in (1, 2):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        storages.append(Storage("s3://bucket/prefix").cached("model"))
    assert storages[0] != storages[1]


@pytest.mark.parametrize("name", ["a%20b", "half?", "#1"])
def test_a_folder_that_no_uri_can_hold_is_refused_for_the_database(
    tmp_path: Path, name: str
) -> None:
    storage = Storage(str(tmp_path / name))
    with pytest.raises(ConfigError, match="its path has %, \\? or #"):
        resolve_tracking(None, storage)
    assert resolve_tracking("http://server", storage) == ("http://server", None)


def test_one_process_at_a_time_builds_and_a_killed_one_blocks_nobody(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pipelines.runtime.storage import Storage\n"
        "with Storage(sys.argv[1]).hold('stages/a-1'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    entered = threading.Event()

    def build() -> None:
        with Storage(str(tmp_path)).hold("stages/a-1"):
            entered.set()

    thread = threading.Thread(target=build)
    thread.start()
    with Storage(str(tmp_path)).hold("stages/b-2"):
        pass  # another stage is free
    assert not entered.wait(0.5)
    holder.kill()
    holder.wait()
    assert entered.wait(60)
    thread.join()


@pytest.mark.parametrize("uri", ["s3//bucket/x", "s3:/bucket/x", "S3A:/bucket", "file:/x"])
def test_a_misspelt_uri_is_not_taken_for_a_folder(uri: str) -> None:
    with pytest.raises(ConfigError, match="neither a folder nor s3://"):
        Storage(uri)


@pytest.mark.parametrize("name", ["s3", "runs/s3/x", "https-runs"])
def test_a_folder_may_be_named_like_a_scheme(name: str, tmp_path: Path) -> None:
    assert Storage(str(tmp_path / name)).is_local


@pytest.mark.parametrize("damage", [Path.unlink, Path.touch, lambda file: file.write_text("xx")])
def test_a_folder_is_whole_while_its_files_are_there(tmp_path: Path, damage) -> None:
    storage = Storage(str(tmp_path))
    with storage.commit("stages/a-1") as (folder, _):
        (folder / "more").mkdir()
        (folder / "more" / "x.txt").write_text("x")
    marker = storage.marker("stages/a-1")
    assert marker is not None and storage.is_whole("stages/a-1", marker)
    damage(tmp_path / "stages" / "a-1" / "more" / "x.txt")
    assert storage.is_whole("stages/a-1", marker) == (damage is Path.touch)
