"""Names of files: one spelling for a file, and as much of a path as tells it from others."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import lru_cache


def canonical(path: str) -> str:
    """Return the one spelling of a local path: absolute, without `..` or links to its folder.

    A URI is left unchanged. The last part may be a link; what it points at is another name.
    """
    if "://" in path:
        return path
    folder, _, name = path.rpartition("/")
    if not path.startswith("/"):  # the working folder may be another one at the next call
        folder = os.path.join(os.getcwd(), os.path.expanduser(folder))
    return f"{_real_folder(folder or '/').rstrip('/')}/{name}"


@lru_cache(maxsize=65_536)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def distinguish(paths: Sequence[str]) -> list[str]:
    """Return of each path as much of its end as tells it from the other ones, in their order.

    A path that stands there several times is one path.
    """
    parts = {path: path.split("/") for path in paths}
    length = dict.fromkeys(parts, 1)
    while True:
        same: dict[str, list[str]] = defaultdict(list)
        for path, n in length.items():
            same["/".join(parts[path][-n:])].append(path)
        alike = [path for group in same.values() if len(group) > 1 for path in group]
        alike = [path for path in alike if length[path] < len(parts[path])]
        if not alike:
            return ["/".join(parts[path][-length[path] :]) for path in paths]
        for path in alike:
            length[path] += 1


def match_names(names: Collection[str], paths: Collection[str]) -> dict[str, str | None]:
    """Return for each name the path that it means, or None.

    A name that is no path as it stands may have backslashes, a leading `./`, or its accents in the
    other Unicode form (macOS stores NFD); it then means the one path that is the same otherwise.
    """
    known = set(paths)
    forms: dict[str, set[str]] = defaultdict(set)
    for path in known:
        forms[unicodedata.normalize("NFC", path)].add(path)
    matched: dict[str, str | None] = {}
    for name in names:
        plain = name if name in known else name.replace("\\", "/").removeprefix("./")
        same = forms.get(unicodedata.normalize("NFC", plain), set())
        one = next(iter(same)) if len(same) == 1 else None
        matched[name] = plain if plain in known else one
    return matched
