"""List files of MSMT17: whatever they name, nothing outside of the folder is opened."""

from __future__ import annotations

import os
from pathlib import Path

from dpmpp_core.data.layouts import scan
from tests.support.bad_input.row import Outcome, Row, picture, refusal

IMAGE = "0000/0000_000_01_0303morning_0015_0.jpg"
OTHER = "0000/0000_001_15_0303noon_0016_1.jpg"


def good_msmt(root: Path) -> Path:
    """Two training images, a query and a gallery image."""
    for seed, name in enumerate((f"train/{IMAGE}", f"train/{OTHER}", f"test/{IMAGE}")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(seed=seed))
    (root / f"test/{OTHER}").write_bytes(picture(seed=9))
    (root / "list_train.txt").write_text(f"{IMAGE} 0\n{OTHER} 0\n")
    (root / "list_query.txt").write_text(f"{IMAGE} 0\n")
    (root / "list_gallery.txt").write_text(f"{OTHER} 0\n")
    return root


def row(given: str, lines: bytes, says: str, entries: int = 4) -> Row:
    """`lines` are added to the training list."""

    def attempt(folder: Path) -> Outcome:
        root = good_msmt(folder / "data")
        (folder / "secret.jpg").write_bytes(picture())
        with (root / "list_train.txt").open("ab") as file:
            file.write(lines)
        found = scan(str(root))
        said = "; ".join(f"{r.path}: {r.reason} ({r.detail})" for r in found.rejected) or "nothing"
        inside = [entry for entry in found.entries if (root / entry.path).is_file()]
        return Outcome(said, f"{len(inside)} of 4 good entries")

    return Row(given, attempt, says, f"{entries} of 4 good entries")


def rewritten(given: str, data: bytes, says: str, entries: int) -> Row:
    """The training list holds `data` and nothing else."""

    def attempt(folder: Path) -> Outcome:
        root = good_msmt(folder / "data")
        (root / "list_train.txt").write_bytes(data)
        found = scan(str(root))
        said = "; ".join(f"{r.path}: {r.reason} ({r.detail})" for r in found.rejected) or "nothing"
        return Outcome(said, f"{len(found.entries)} of 4 good entries")

    return Row(given, attempt, says, f"{entries} of 4 good entries")


def piped(folder: Path) -> Outcome:
    root = good_msmt(folder / "data")
    (root / "list_train.txt").unlink()
    os.mkfifo(root / "list_train.txt")
    return Outcome(refusal(scan, str(root)), f"{len(list(root.rglob('*.jpg')))} images")


BOTH = f"{IMAGE} 0\n{OTHER} 0\n"

ROWS = [
    row("path out of the root", b"../../secret.jpg 3\n", "list_train.txt:3: outside_root"),
    row("the same with backslashes", b"..\\..\\secret.jpg 3\n", "list_train.txt:3: outside_root"),
    row("absolute path", b"/etc/hostname 3\n", "list_train.txt:3: outside_root"),
    row("path of a web server", b"http://host/x.jpg 3\n", "list_train.txt:3: outside_root"),
    row("NUL in a path", f"{IMAGE}\0 3\n".encode(), "list_train.txt:3: outside_root"),
    row("image that is not there", b"0001/gone.jpg 3\n", "gone.jpg: missing_file .*txt:3"),
    row("line twice", f"{IMAGE} 0\n".encode(), "list_train.txt:3: listed_twice"),
    row("image listed as two persons", f"{IMAGE} 7\n".encode(), "conflicting_label .*0 and 7", 3),
    row("line without a person", b"0001/x.jpg\n", "list_train.txt:3: bad_list_line"),
    row("negative person", b"0001/x.jpg -1\n", "list_train.txt:3: bad_list_line"),
    row("person of 30 digits", f"0001/x.jpg {'9' * 30}\n".encode(), "3: bad_list_line"),
    row("line of 1 MB", b"x" * 2**20 + b"\n", r"3: bad_list_line \(.{0,140}\)$"),
    rewritten("list with a byte order mark", b"\xef\xbb\xbf" + BOTH.encode(), "^nothing$", 4),
    rewritten("list with Windows line ends", BOTH.replace("\n", "\r\n").encode(), "^nothing$", 4),
    rewritten("list in UTF-16", BOTH.encode("utf-16"), "bad_list_line|outside_root", 2),
    rewritten("empty list", b"", "not_listed", 2),
    Row("pipe in the place of a list", piped, "DataError: .* needs list_train.txt", "4 images"),
]
