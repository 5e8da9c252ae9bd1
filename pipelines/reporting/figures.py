"""Pictures of a run: ranked lists, CMC curves, masks, losses and contact sheets.

Every function returns an RGB uint8 array [H, W, 3] on white.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dpmpp_core.retrieval import Embeddings, top_matches
from dpmpp_core.retrieval.calibration import Calibration

Image = NDArray[np.uint8]

INK, MUTED, GRID = (31, 35, 40), (101, 109, 118), (208, 215, 222)
RIGHT, WRONG = (26, 127, 55), (207, 34, 46)
GAP = 8
SHOWN_QUERIES = 200
# Colours that stay apart for the colour-blind (Okabe and Ito), and a line style besides.
LINES = {
    "with mask": ("#0072B2", "-"),
    "no mask": ("#D55E00", "--"),
    "histogram": ("#7A7A7A", ":"),
}
# Variants side by side: colours (Okabe and Ito), line styles, markers, each taken by order.
VARIANTS = (
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    ("-", "--", "-.", ":"),
    ("o", "s", "^", "D", "v"),
)
CLEAN_QUERIES = "clean"  # the queries of which nothing is hidden
TITLES = {
    "any": "Any part hidden (a silhouette)",
    "top": "Top hidden",
    "bottom": "Bottom hidden",
    "side": "A side hidden",
}


class _Frame(NamedTuple):
    image: Image
    caption: str
    colour: tuple[int, int, int]
    thickness: int


def ranked_lists(
    query: Embeddings,
    gallery: Embeddings,
    rows: Sequence[int],
    load: Callable[[str], Image],
    k: int = 10,
) -> Image:
    """For each query row of `rows`: its picture, and the first k of the gallery with and without
    its mask, one list above the other.

    Same person: thick green frame and a tick; another person: thin red frame. Junk is left out.
    `load` turns a path of the embeddings into an RGB uint8 picture; what it raises is passed on.
    """
    lists = {
        "with mask": top_matches(query, gallery, k, "masked", rows),
        "no mask": top_matches(query, gallery, k, "unmasked", rows),
    }
    blocks = []
    for i, row in enumerate(rows):
        lines = []
        for label, (indices, scores) in lists.items():
            frames = []
            for item, score in zip(indices[i], scores[i], strict=True):
                if item < 0:
                    break
                match = gallery.pids[item] == query.pids[row]
                caption = f"{'✓ ' if match else ''}{score:.2f} · c{gallery.camids[item]}"
                colour = RIGHT if match else WRONG
                image = load(gallery.paths[item])
                frames.append(_Frame(image, caption, colour, 5 if match else 2))
            lines.append(_beside([_caption_box(label, 74, 150), *map(_framed, frames)]))
        caption = f"pid {query.pids[row]} · c{query.camids[row]}"
        asked = _framed(_Frame(load(query.paths[row]), caption, INK, 2), width=120, height=300)
        blocks.append(_beside([asked, _stack(lines)]))
    return _stack(blocks, gap=3 * GAP)


def contact_sheet(images: Sequence[Image], captions: Sequence[str], columns: int) -> Image:
    """Pictures of any size in rows of `columns`, each over its caption (cut where too long).

    Raises ValueError if there are not as many captions as pictures, or none.
    """
    if not images or columns < 1:
        raise ValueError("a contact sheet needs at least one picture and one column")
    cells = [
        _framed(_Frame(image, caption, GRID, 1), width=112)
        for image, caption in zip(images, captions, strict=True)
    ]
    lines = [_beside(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return _stack(lines)


def caption_lists(
    captions: Sequence[str],
    scores: NDArray[np.float32],
    right: NDArray[np.bool_],
    load: Callable[[int], Image],
    k: int = 10,
) -> Image:
    """Each caption over the k pictures of the gallery that it finds first.

    `scores`, `right`: [len(captions), N]. Right pictures have a thick green frame and a tick.
    """
    blocks = []
    for caption, line, hits in zip(captions, scores, right, strict=True):
        frames = []
        for item in np.argsort(-line, kind="stable")[:k]:
            mark, colour, thickness = ("✓ ", RIGHT, 5) if hits[item] else ("", WRONG, 2)
            frames.append(_Frame(load(int(item)), f"{mark}{line[item]:.2f}", colour, thickness))
        found = _beside([*map(_framed, frames)])
        head = np.full((28, found.shape[1], 3), 255, np.uint8)
        _write(head, caption, baseline=20)
        blocks.append(_stack([head, found]))
    return _stack(blocks, gap=GAP)


def cmc_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], ranks: int = 20) -> Image:
    """CMC curves, a panel for each query set.

    `curves`: set name -> label -> CMC [R] in [0, 1]. The labels "with mask", "no mask" and
    "histogram" have fixed colours; others get one by order.
    """
    figure, panels = panels_of(len(curves), width=4.6, height=3.4)
    for axes, (name, lines) in zip(panels, curves.items(), strict=True):
        for label, curve in lines.items():
            colour, style = LINES.get(label, (None, "-."))
            shown = 100 * np.asarray(curve)[:ranks]
            axes.plot(
                np.arange(1, len(shown) + 1),
                shown,
                style,
                color=colour,
                label=label,
                lw=2,
                marker="o" if len(shown) < 3 else None,
            )
        axes.set(xlabel="first k of the list", ylim=(0, 101), xticks=[1, *range(5, ranks + 1, 5)])
        axes.set_title(plain(f"{name} queries"))
        axes.set_ylabel("queries with a match (%)")
        axes.legend(frameon=False, loc="lower right")
    return drawn(figure)


def robustness_curve(measured: Mapping[str, Mapping[str, Any]]) -> Image:
    """mAP and rank-1 over the share of the person hidden, a panel for each part hidden.

    `measured`: as in robustness.json: CLEAN_QUERIES -> figures, and part ->
    band -> figures: `hidden` (mean
    share), `mAP_masked`, `mAP_unmasked`, `rank1_masked`, `rank1_unmasked`, all in [0, 1]. Every
    curve starts at CLEAN_QUERIES; a band whose `hidden` is None has no point.
    """
    parts = [part for part in measured if part != CLEAN_QUERIES]
    figure, panels = panels_of(2 * len(parts), width=3.4, height=2.9, columns=max(2, len(parts)))
    for i, (key, title) in enumerate({"mAP": "mAP", "rank1": "rank-1"}.items()):
        row = panels[i * len(parts) :][: len(parts)]
        for axes, part in zip(row, parts, strict=True):
            for label, mode in {"with mask": "masked", "no mask": "unmasked"}.items():
                colour, style = LINES[label]
                points = _falling(measured, part, f"{key}_{mode}")
                axes.plot(*points, style, color=colour, label=label, lw=2, marker="o", ms=4)
            _hidden_axes(axes, part, f"{title} (%)")
        _same_height(row)
    panels[0].legend(frameon=False, loc="lower left")
    return drawn(figure)


def robustness_comparison(variants: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Image:
    """mAP with masks over the share of the person hidden, a panel a part, a line a variant.

    `variants`: name -> what `robustness_curve` takes. A part that a variant was not measured on
    has no line of it. Raises ValueError if no part was measured at all.
    """
    parts = list(dict.fromkeys(p for m in variants.values() for p in m if p != CLEAN_QUERIES))
    if not parts:
        raise ValueError("no variant was measured with any part of the person hidden")
    figure, panels = panels_of(len(parts), width=3.4, height=3.1)
    for axes, part in zip(panels, parts, strict=True):
        for i, (name, measured) in enumerate(variants.items()):
            if part in measured:
                colour, style, marker = (kinds[i % len(kinds)] for kinds in VARIANTS)
                points = _falling(measured, part, "mAP_masked")
                axes.plot(*points, style, color=colour, label=plain(name), lw=2, marker=marker,
                          ms=4.5)  # fmt: skip
        _hidden_axes(axes, part, "mAP with mask (%)")
    _same_height(panels)
    labels = {label: line for axes in panels
              for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(list(labels.values()), list(labels), loc="outside lower center", frameon=False,
                  ncols=min(4, len(labels)), handlelength=3)  # fmt: skip
    return drawn(figure)


def _falling(
    measured: Mapping[str, Mapping[str, Any]], part: str, key: str
) -> tuple[list[float], list[float]]:
    """Percent hidden and the figure in percent, from the clean queries on."""
    points = [{**measured[CLEAN_QUERIES], "hidden": 0.0}, *measured[part].values()]
    points = [point for point in points if point["hidden"] is not None]
    return [100 * point["hidden"] for point in points], [100 * point[key] for point in points]


def _hidden_axes(axes: Axes, part: str, figure: str) -> None:
    axes.set(xlabel="of the person hidden (%)", ylabel=figure)
    axes.set_title(plain(TITLES.get(part, part)))
    axes.set_xlim(left=-2)


def _same_height(panels: Sequence[Axes]) -> None:
    """From zero to the best of all: panels side by side are read against each other."""
    top = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(0, min(top, 101))


def mask_picture(masks: Mapping[str, NDArray[np.floating[Any]]]) -> Image:
    """Which part of the identity space each mask kept.

    `masks`: space -> [N, D] in [0, 1]. Above: queries (at most 200, evenly picked) by channels,
    channels sorted by their mean; vertical stripes = the same mask for everybody, changes down a
    column = a mask made for its query. Below: how often each value occurs.
    """
    figure, panels = panels_of(2 * len(masks), width=6.2, height=2.9, columns=len(masks))
    for i, (space, mask) in enumerate(masks.items()):
        heat, bars = panels[i], panels[len(masks) + i]
        picked = np.linspace(0, len(mask) - 1, min(len(mask), SHOWN_QUERIES)).round().astype(int)
        shown = np.asarray(mask, np.float32)[picked][:, np.argsort(mask.mean(0), kind="stable")]
        shades = heat.imshow(shown, aspect="auto", vmin=0, vmax=1, cmap="viridis")
        heat.set_title(plain(f"What each query keeps of space {space}"))
        heat.set(xlabel="dimensions, from least to most kept", ylabel="queries")
        heat.grid(False)
        bar = figure.colorbar(shades, ax=heat, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["0 ignored", "0.5", "1 kept"])
        bars.hist(np.asarray(mask).ravel(), bins=50, range=(0, 1), color="#0072B2")
        bars.set(xlabel="mask value", yticks=[], ylabel="how often", xlim=(0, 1))
        bars.set_title(plain(f"Values of the mask in space {space}"))
    return drawn(figure)


def loss_curves(history: Sequence[Mapping[str, float]]) -> Image:
    """Every column of the training history over its `epoch`, a panel each (their scales differ).

    `history`: one mapping an epoch. A column may be missing in some epochs. Raises ValueError if
    there is nothing to draw.
    """
    names = list(dict.fromkeys(key for entry in history for key in entry if key != "epoch"))
    if not names:
        raise ValueError("the training history has no values to draw")
    figure, panels = panels_of(len(names), width=3.1, height=2.2, columns=min(4, len(names)))
    for axes, name in zip(panels, names, strict=True):
        points = [
            (entry.get("epoch", i), entry[name]) for i, entry in enumerate(history) if name in entry
        ]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color="#0072B2", lw=1.8, marker="o" if len(x) < 3 else None)
        axes.set_title(plain(name))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
    return drawn(figure)


def reliability_diagram(calibration: Calibration) -> Image:
    """What probabilities are worth on persons not fitted on, and what each threshold costs."""
    figure, (left, right) = panels_of(2, width=4.4, height=3.6)
    told, true, _ = (np.array(x) for x in zip(*calibration.reliability, strict=True))
    left.plot([0, 100], [0, 100], ":", color="#7A7A7A", lw=1.5, label="perfect")
    label = f"held-out persons, ECE {100 * calibration.held_out['ece']:.1f} %"
    left.plot(100 * told, 100 * true, "-o", color="#0072B2", lw=2, ms=5, label=label)
    left.set(xlabel="told: same person (%)", ylabel="true: same person (%)")
    left.set(xlim=(-2, 102), ylim=(-2, 102))
    left.set_title("Reliability, pairs at even odds")
    left.legend(frameon=False, loc="upper left")
    wrong = [(100 * t.false_accept, 100 * t.false_reject) for t in calibration.thresholds]
    accepted, refused = np.array(wrong or [(np.nan, np.nan)]).T
    right.plot(accepted, refused, "-o", color="#D55E00", lw=2, ms=5)
    right.set(xlabel="pairs of two persons accepted (%)", ylabel="pairs of one refused (%)")
    right.set(xscale="log", ylim=(-2, 102))
    right.xaxis.set_major_formatter("{x:g}")
    for threshold, x, y in zip(calibration.thresholds, accepted, refused, strict=False):
        right.annotate(f"{threshold.score:.2f}", (x, y), (5, 5), textcoords="offset points",
                       fontsize=8)  # fmt: skip
    right.set_title("Thresholds on the score")
    return drawn(figure)


def save_png(path: Path, image: Image) -> None:
    """Writes an RGB picture; makes the folder. Raises OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(image))


def png_bytes(image: Image) -> bytes:
    """An RGB uint8 picture [H, W, 3] as a PNG file."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def panels_of(
    count: int, width: float, height: float, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """`count` axes in a grid, inches each. A plain Figure: pyplot would keep it in global state."""
    columns = max(1, columns or count)
    lines = max(1, -(-count // columns))
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(width * columns, height * lines), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    panels = []
    for i in range(count):
        axes = figure.add_subplot(lines, columns, i + 1)
        axes.grid(color="#d0d7de", lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(11)
        panels.append(axes)
    return figure, panels


def drawn(figure: Figure) -> Image:
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def _framed(frame: _Frame, width: int = 74, height: int = 150) -> Image:
    """A picture fitted into `width` x `height` pixels, framed, over its caption."""
    border = 5
    cell = np.full((height, width + 2 * border, 3), 255, np.uint8)
    room = (height - 26 - 2 * border, width)
    scale = min(room[0] / frame.image.shape[0], room[1] / frame.image.shape[1])
    h, w = (max(1, round(side * scale)) for side in frame.image.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    top, left = border + room[0] - h, border + (width - w) // 2
    t = frame.thickness
    cell[top - t : top + h + t, left - t : left + w + t] = frame.colour
    cell[top : top + h, left : left + w] = cv2.resize(frame.image, (w, h), interpolation=method)
    _write(cell, frame.caption, baseline=height - 8)
    return cell


def _caption_box(text: str, width: int, height: int) -> Image:
    box = np.full((height, width, 3), 255, np.uint8)
    _write(box, text, baseline=height // 2, colour=MUTED)
    return box


def _write(canvas: Image, text: str, baseline: int, colour: tuple[int, int, int] = INK) -> None:
    """Text in the middle of `canvas`, cut to its width."""
    font, size, weight = _font(), 13, 450
    while (width := cv2.getTextSize((0, 0), text, (0, 0), font, size, weight)[2]) > canvas.shape[1]:
        text = text.rstrip("…")[:-1] + "…"
    left = (canvas.shape[1] - width) // 2
    cv2.putText(canvas, text, (left, baseline), colour, font, size, weight)


@functools.cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def _beside(cells: Sequence[Image]) -> Image:
    height = max(cell.shape[0] for cell in cells)
    width = sum(cell.shape[1] for cell in cells) + GAP * (len(cells) - 1)
    canvas, left = np.full((height, width, 3), 255, np.uint8), 0
    for cell in cells:
        canvas[: cell.shape[0], left : left + cell.shape[1]] = cell
        left += cell.shape[1] + GAP
    return canvas


def _stack(cells: Sequence[Image], gap: int = 0) -> Image:
    width = max(cell.shape[1] for cell in cells)
    height = sum(cell.shape[0] for cell in cells) + gap * (len(cells) - 1)
    canvas, top = np.full((height, width, 3), 255, np.uint8), 0
    for cell in cells:
        canvas[top : top + cell.shape[0], : cell.shape[1]] = cell
        top += cell.shape[0] + gap
    return canvas
