"""Configuration files and overrides that mean harm, or would be misunderstood in silence."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from dpmpp_core.config import load_config, parse_seeds
from dpmpp_core.config.grid import load_grid
from dpmpp_core.config.text import read_text
from tests.support.bad_input.row import Outcome, Row, as_nobody, refusal

BOMB = "seed: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


def row(given: str, text: str | bytes, says: str, read: Callable = load_config) -> Row:
    """A file of the user with that text."""

    def attempt(folder: Path) -> Outcome:
        file = folder / "mine.yaml"
        data = text if isinstance(text, bytes) else text.format(folder=folder).encode()
        file.write_bytes(data)
        said = refusal(lambda: read(str(file)).name if read is load_config else read(str(file)))
        same = file.read_bytes() == data and list(folder.iterdir()) == [file]
        return Outcome(said, "file as it was" if same else "changed")

    return Row(given, attempt, says, "file as it was")


def override(given: str, text: str, says: str) -> Row:
    return Row(given, lambda _: Outcome(refusal(load_config, "demo", [text]), ""), says, "")


def call(given: str, work: Callable[[], object], says: str) -> Row:
    return Row(given, lambda _: Outcome(refusal(work), ""), says, "")


def shut(_: Path) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others as a whole
        os.chmod(folder, 0o755)
        file = Path(folder) / "mine.yaml"
        file.write_text("seed: 1\n")
        file.chmod(0)
        with as_nobody():
            said = refusal(read_text, str(file))  # the package may be closed to nobody, too
        return Outcome(said.replace(folder, "FOLDER"), "")


ROWS = [
    row("YAML that makes an object", "name: !!python/object/apply:os.mkdir ['{folder}/ran']\n",
        "not valid YAML: could not determine a constructor"),
    row("YAML that names a function", "name: !!python/name:os.system\n", "not valid YAML"),
    row("YAML bomb: 12 lines, 10^11 values", BOMB, r"aliases \(\*name\) are not allowed"),
    row("YAML that holds itself", "metric: &a\n  loss: *a\n", "aliases"),
    row("values nested 5,000 deep", "seed: " + "[" * 5000, "nested more than 20 deep"),
    row("key twice", "seed: 1\nseed: 2\n", "the key 'seed' stands here twice"),
    row("key twice in a section", "metric:\n  lr: 1\n  lr: 2\n", "'lr' stands here twice"),
    row("number of 5,000 digits", "seed: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
    row("seed of 2^64", f"seed: {2**64}", "seed 18446744073709551616 is larger than"),
    row("10^30 epochs", f"metric:\n  epochs: {10**30}", "metric: epochs 1000.* is larger than"),
    row("NaN", "metric:\n  lr: .nan\n", "metric.lr: .*(finite|greater)"),
    row("infinity", "metric:\n  lr: .inf\n", "metric.lr: .*finite"),
    row("date that is none", "name: 2001-99-99\n", "not valid YAML: month must be in"),
    row("tag that does not fit", "seed: !!int x\n", "not valid YAML: invalid literal"),
    row("truth that is none", "seed: !!bool x\n", "not valid YAML: 'x'"),
    row("NUL byte", b"seed: 1\0", "not valid YAML.*special characters"),
    row("UTF-16", "seed: 1".encode("utf-16"), "not a text file in UTF-8"),
    row("byte order mark", b"\xef\xbb\xbfseed: 1\n", "accepted: 'mine'"),
    row("Windows line ends", b"seed: 1\r\nmetric:\r\n  epochs: 3\r\n", "accepted: 'mine'"),
    row("two documents", "seed: 1\n---\nseed: 2\n", "expected a single document"),
    row("value of 1 MB", "seed: " + "x" * (2**20 - 9), r"seed: .{1,300}$"),
    row("file above 1 MiB", "# " + "x" * 2**20, "larger than 1 MiB"),
    row("grid: YAML that makes an object", "full: !!python/name:os.system\n", "not valid YAML",
        load_grid),
    row("grid: variant twice", "variants:\n  a: {{}}\n  a: {{}}\n", "'a' stands here twice",
        load_grid),
    row("grid: number of 5,000 digits", "full: " + "9" * 5000, "not valid YAML", load_grid),
    override("override with a bomb", "seed=[&a [x], *a, *a]", "aliases"),
    override("override with a key twice", "metric={lr: 1, lr: 2}", "'lr' stands here twice"),
    override("override of 5,000 digits", "seed=" + "9" * 5000, r"ConfigError: .{1,999}$"),
    override("override nested without end", "seed=" + "[" * 5000, "nested more than 20 deep"),
    override("override with terminal codes", "model.prompt=\x1b[2J {}", "not a YAML value"),
    override("name with a path", "name=../up", "name: string should match"),
    call("recipe name of 5,000 letters", lambda: load_config("x" * 5000), r"recipe or .{1,600}$"),
    call("recipe name with NUL", lambda: load_config("a\0b"), r"named 'a\\x00b'"),
    call("grid name of 5,000 letters", lambda: load_grid("x" * 5000), r"no grid or file .{1,600}$"),
    call("seed of 30 digits", lambda: parse_seeds("9" * 30), "a seed is larger than"),
    Row("configuration without permission to read", shut, "cannot be read: Permission", ""),
]  # fmt: skip
