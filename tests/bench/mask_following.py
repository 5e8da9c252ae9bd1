"""Parts of `mask_forensics`: does a mask change when, and only when, what is seen changes?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from dpmpp_core.data.annotations import unpack_mask
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.demo.occluders import TEST_KINDS
from dpmpp_core.models.bands import SPACE as BANDS
from dpmpp_core.retrieval import Embeddings, paired_bootstrap
from pipelines.reporting.figures import draw_contact_sheet, save_png

EXCHANGES = 10
FIFTHS = 5
SHOWN = 4  # queries a line of the picture
SIZE = 256, 128
Floats = NDArray[np.float64]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
Figures = dict[str, dict[str, float]]
Notes = Mapping[str, NDArray]


def following(query: Embeddings, whole: Embeddings, notes: Notes) -> Figures:
    """Rank correlation of the distances of masks and of visible bodies, by space and kind of pair.

    same person: two queries of one person behind different occluders. same occluder: of different
    persons behind one kind. clean twin: a query and the same photograph with nothing in front, in
    sets that have it. Masks are compared at unit length, as the metric does not see their length.
    Control: the visible shares dealt to other queries.
    """
    person, occluder, visible = notes["person"], notes["occluder"], notes["visible"]
    first, second = np.triu_indices(len(query), 1)
    alike, kind = person[first] == person[second], occluder[first] == occluder[second]
    chosen = {"same person": alike & ~kind, "same occluder": kind & ~alike}
    pairs: dict[str, Pairs] = {name: (first[on], second[on]) for name, on in chosen.items()}
    # The twins follow the queries, wholly seen.
    twins = clean_twins(query, whole)
    if len(twins):
        pairs["clean twin"] = np.arange(len(query)), len(query) + np.arange(len(query))
        unhidden = np.ones_like(visible)
    figures = {}
    for space, masks in query.masks.items():
        if not masks.std(axis=0).any():
            continue
        values = np.vstack([masks, whole.masks[space][twins]]).astype(np.float64)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        for name, pair in pairs.items():
            if len(pair[0]) < 3:
                continue

            def correlation(seen: Floats, values: Floats = values, pair: Pairs = pair) -> float:
                shares = np.vstack([seen, unhidden]) if len(twins) else seen
                return spearman(distances(values, pair), distances(shares, pair))

            dealt = [correlation(np.random.default_rng(seed).permutation(visible))
                     for seed in range(EXCHANGES)]  # fmt: skip
            figures[f"{space}, {name}"] = {
                "pairs": len(pair[0]),
                "visible body": correlation(visible),
                "dealt": float(np.mean(dealt)),
            }
    return figures


def clean_twins(query: Embeddings, whole: Embeddings) -> NDArray[np.int64]:
    """Row of each query's unoccluded twin, which has its file name; empty if any has none."""
    rows = {Path(path).name: row for row, path in enumerate(whole.paths)}
    found = [rows.get(Path(path).name, -1) for path in query.paths]
    return np.array([] if -1 in found else found, np.int64)


def distances(values: Floats, pair: Pairs) -> Floats:
    """Euclidean, of the pairs of rows."""
    return np.linalg.norm(values[pair[0]] - values[pair[1]], axis=1)


def spearman(one: Floats, other: Floats) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN where one never changes."""
    ranks = np.stack([_ranks(one), _ranks(other)])
    if (ranks.std(axis=1) == 0).any():
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: Floats) -> Floats:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]


def groups(notes: Notes) -> dict[str, NDArray[np.bool_]]:
    """All queries; by what hides them (the part, where the kinds tell); by fifths of the share.

    Only groups of two persons or more: of one there is no interval.
    """
    occluder = notes["occluder"]
    parts = {kind: part for part, kinds in TEST_KINDS.items() for kind in kinds}
    if set(occluder) <= set(parts):
        occluder = np.array([f"{parts[kind]} hidden" for kind in occluder])
    found = {"all": np.ones(len(occluder), bool)}
    found |= {str(name): occluder == name for name in np.unique(occluder)}
    hidden = 100 * (1 - np.array([row["visible_share"] for row in notes["rows"]]))
    for fifth in np.array_split(np.argsort(hidden, kind="stable"), min(FIFTHS, len(hidden))):
        name = f"{hidden[fifth].min():.0f}-{hidden[fifth].max():.0f} % hidden"
        found[name] = np.isin(np.arange(len(hidden)), fifth)
    return {k: rows for k, rows in found.items() if len(np.unique(notes["person"][rows])) > 1}


def gain_table(precisions: Mapping[str, Floats], notes: Notes) -> list[str]:
    """Markdown: gains of the own mask in points of mAP with 95 % intervals over identities.

    `precisions`: mode -> average precision of each query, mean over seeds.
    """
    lines = [
        "| queries | number | mAP, own mask | over none | over permuted | over static |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    own = precisions["masked"]
    for name, rows in groups(notes).items():
        cells = [f"{100 * np.nanmean(own[rows]):.1f}"]
        for mode in ("unmasked", "permuted", "static"):
            gain = own[rows] - precisions[mode][rows]
            found = paired_bootstrap(100 * gain, notes["person"][rows])
            cells.append(f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]")
        lines.append(f"| {name} | {rows.sum()} | {' | '.join(cells)} |")
    return lines


def picture(root: str, query: Embeddings, notes: Notes, path: Path) -> None:
    """Lines of one person under different occluders, then of one occluder over different persons.

    Each query: as it is, what of the person is truly seen, what its mask trusts.
    """
    cells, captions = [], []
    trusted = Trust(query)
    for line in [*_persons(notes), *_occluders(notes)]:
        for i in line:
            image = resize(read_image(root, query.paths[i]), *SIZE)
            seen = unpack_mask(notes["rows"][i]["person_mask"]).astype(np.float64)
            cells += [image, shaded(image, seen), trusted.drawn(image, i)]
            share = f"{100 * notes['rows'][i]['visible_share']:.0f} % seen"
            captions += [f"{notes['person'][i]} {notes['occluder'][i]}", share, trusted.caption]
        blank = np.full((*SIZE, 3), 255, np.uint8)
        missing = 3 * (SHOWN - len(line))
        cells, captions = cells + missing * [blank], captions + missing * [""]
    save_png(path, draw_contact_sheet(cells, captions, 3 * SHOWN))


class Trust:
    """Draws what a query's mask trusts, relative to the mean mask.

    A band space: the picture, darkened where the mask is low. Else a stripe a space, channels from
    least to most kept on average: red above the mean mask, blue below, white as the mean.
    """

    def __init__(self, query: Embeddings) -> None:
        spaces = [BANDS] if BANDS in query.masks else list(query.masks)
        self._banded = BANDS in query.masks
        self._relative = []
        for space in spaces:
            mask = query.masks[space].astype(np.float64)
            usual = mask.mean(axis=0)
            self._relative.append((mask / usual - 1)[:, np.argsort(usual, kind="stable")]
                                  if space != BANDS else mask / usual)  # fmt: skip
        self._range = 1.0
        if not self._banded:
            self._range = max(float(np.quantile(np.abs(r), 0.98)) for r in self._relative) or 1.0
        limit = f"{100 * self._range:.2g}"
        self.caption = "trusted" if self._banded else f"mask, ± {limit} %"

    def drawn(self, image: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        if self._banded:
            light = np.clip(self._relative[0][row], 0, 1.2)[:, None] / 1.2
            return shaded(image, light)
        stripes = [
            cv2.resize((relative[row][:, None] / self._range).astype(np.float32),
                       (SIZE[1] // len(self._relative), SIZE[0]), interpolation=cv2.INTER_AREA)
            for relative in self._relative
        ]  # fmt: skip
        colours = matplotlib.colormaps["RdBu_r"](np.clip(np.hstack(stripes), -1, 1) / 2 + 0.5)
        return (255 * colours[..., :3]).astype(np.uint8)


def shaded(image: NDArray[np.uint8], light: Floats) -> NDArray[np.uint8]:
    """The picture, darkened by `light` [h, w] in [0, 1] stretched over it."""
    full = cv2.resize(light.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return (image * (0.15 + 0.85 * full.reshape(*image.shape[:2], 1))).astype(np.uint8)


def _persons(notes: Notes) -> list[NDArray[np.int64]]:
    """Queries of three of the persons with most kinds of occluders, each kind once."""
    lines = []
    for person in np.unique(notes["person"]):
        rows = np.flatnonzero(notes["person"] == person)
        lines.append(rows[np.unique(notes["occluder"][rows], return_index=True)[1]][:SHOWN])
    most = [line for line in lines if len(line) == max(map(len, lines))]
    return [most[i] for i in np.linspace(0, len(most) - 1, min(3, len(most))).round().astype(int)]


def _occluders(notes: Notes) -> list[NDArray[np.int64]]:
    """Queries of different persons behind the same occluder, for the four commonest kinds."""
    kinds, counts = np.unique(notes["occluder"], return_counts=True)
    lines = []
    for kind in kinds[np.argsort(-counts, kind="stable")][:4]:
        rows = np.flatnonzero(notes["occluder"] == kind)
        rows = rows[np.unique(notes["person"][rows], return_index=True)[1]]
        picked = np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int)
        lines.append(rows[picked])
    return lines
