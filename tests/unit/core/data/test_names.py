"""One spelling of a path, and as much of it as tells it from others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmpp_core.data.names import canonical, distinguish

PATHS = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join))


def test_a_folder_has_one_name_through_links_and_dots(tmp_path: Path) -> None:
    (tmp_path / "data" / "camA").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    name = canonical(f"{tmp_path}/data/camA/1.jpg")
    assert name == str((tmp_path / "data" / "camA" / "1.jpg").resolve())
    for other in (f"{tmp_path}/link/camA/1.jpg", f"{tmp_path}/data/camA/../camA/./1.jpg"):
        assert canonical(other) == name
    assert canonical("s3://bucket/a/../1.jpg") == "s3://bucket/a/../1.jpg"


def test_a_relative_path_is_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert canonical("1.jpg") == f"{tmp_path.resolve()}/1.jpg"


@pytest.mark.parametrize(
    ("paths", "shown"),
    [
        (
            ["/d/camA/1.jpg", "/d/camB/1.jpg", "/d/camB/2.jpg"],
            ["camA/1.jpg", "camB/1.jpg", "2.jpg"],
        ),
        (["/d/1.jpg", "/d/1.jpg"], ["1.jpg", "1.jpg"]),
        (["1.jpg", "a/1.jpg"], ["1.jpg", "a/1.jpg"]),
        ([], []),
    ],
)
def test_what_is_shown_is_as_short_as_it_can_be(paths: list[str], shown: list[str]) -> None:
    assert distinguish(paths) == shown


@given(PATHS)
def test_what_is_shown_identifies(paths: list[str]) -> None:
    shown = distinguish(paths)
    assert len(set(shown)) == len(set(paths))
    assert all(path.endswith(name) for path, name in zip(paths, shown, strict=True))
