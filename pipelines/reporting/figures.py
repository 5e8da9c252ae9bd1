"""Figures of a run: ranked lists, CMC curves, masks, losses and contact sheets.

Every `draw_` function returns an RGB uint8 array [H, W, 3] on white.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dpmpp_core.data.synthesis import CLEAN_QUERIES
from dpmpp_core.gallery.html import encode_png
from dpmpp_core.retrieval import Embeddings, top_matches
from dpmpp_core.retrieval.calibration import Calibration

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

INK, MUTED, GRID = (31, 35, 40), (101, 109, 118), (208, 215, 222)
RIGHT, WRONG = (26, 127, 55), (207, 34, 46)
GAP = 8
SHOWN_QUERIES = 200
# Colours that the colour-blind can distinguish (Okabe and Ito), and line styles.
LINES = {"with mask": ("#0072B2", "-"), "no mask": ("#D55E00", "--"), "histogram": ("#7A7A7A", ":")}
# Colours (Okabe and Ito), line styles and markers of variants, each in this order.
VARIANTS = (
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    ("-", "--", "-.", ":"),
    ("o", "s", "^", "D", "v"),
)
TITLES = {"any": "Any part hidden (a silhouette)", "top": "Top hidden", "bottom": "Bottom hidden",
          "side": "A side hidden"}  # fmt: skip


def draw_ranked_lists(
    query: Embeddings,
    gallery: Embeddings,
    rows: Sequence[int],
    load: Callable[[str], Image],
    k: int = 10,
) -> Image:
    """Draw each query of `rows` with the first k of the gallery, with and without its mask.

    Same person: thick green frame and a tick; another person: thin red frame. Junk is left out.
    `load` turns a path of the embeddings into an RGB uint8 picture; its exceptions propagate.
    """
    lists = {
        "with mask": top_matches(query, gallery, k, "masked", rows),
        "no mask": top_matches(query, gallery, k, "unmasked", rows),
    }
    blocks = []
    for i, row in enumerate(rows):
        lines = []
        for label, (indices, scores) in lists.items():
            cells = [_draw_label(label, 74, 150)]
            for item, score in zip(indices[i], scores[i], strict=True):
                if item < 0:
                    break
                caption = f"{score:.2f} · c{gallery.camids[item]}"
                match = gallery.pids[item] == query.pids[row]
                cells.append(_frame_match(load(gallery.paths[item]), caption, match))
            lines.append(_join_row(cells))
        caption = f"pid {query.pids[row]} · c{query.camids[row]}"
        picture = _frame_picture(load(query.paths[row]), caption, INK, 2, width=120, height=300)
        blocks.append(_join_row([picture, _stack_rows(lines)]))
    return _stack_rows(blocks, gap=3 * GAP)


def draw_contact_sheet(images: Sequence[Image], captions: Sequence[str], columns: int) -> Image:
    """Draw pictures of any size in rows of `columns`, each over its caption (cut if too long).

    Raises:
        ValueError: There are not as many captions as pictures, or none.
    """
    if not images or columns < 1:
        raise ValueError("a contact sheet needs at least one picture and one column")
    cells = [
        _frame_picture(image, caption, GRID, 1, width=112)
        for image, caption in zip(images, captions, strict=True)
    ]
    lines = [_join_row(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return _stack_rows(lines)


def draw_caption_lists(
    captions: Sequence[str],
    scores: NDArray[np.float32],
    right: NDArray[np.bool_],
    load: Callable[[int], Image],
    k: int = 10,
) -> Image:
    """Draw each caption over its first k pictures of the gallery.

    `scores`, `right`: [len(captions), N]. Right pictures have a thick green frame and a tick.
    """
    blocks = []
    for caption, line, hits in zip(captions, scores, right, strict=True):
        first = np.argsort(-line, kind="stable")[:k]
        line_image = _join_row(
            [_frame_match(load(int(i)), f"{line[i]:.2f}", hits[i]) for i in first]
        )
        head = np.full((28, line_image.shape[1], 3), 255, np.uint8)
        _write_text(head, caption, baseline=20)
        blocks.append(_stack_rows([head, line_image]))
    return _stack_rows(blocks, gap=GAP)


def draw_cmc_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], ranks: int = 20) -> Image:
    """Draw CMC curves, one panel per query set.

    `curves`: set name -> label -> CMC [R] in [0, 1]. The labels "with mask", "no mask" and
    "histogram" have fixed colours; others get one by order.
    """
    figure, panels = create_panels(len(curves), width=4.6, height=3.4)
    for axes, (name, lines) in zip(panels, curves.items(), strict=True):
        for label, curve in lines.items():
            colour, style = LINES.get(label, (None, "-."))
            shown = 100 * np.asarray(curve)[:ranks]
            marker, first_k = "o" if len(shown) < 3 else None, np.arange(1, len(shown) + 1)
            axes.plot(first_k, shown, style, color=colour, label=label, lw=2, marker=marker)
        axes.set(xlabel="first k of the list", ylim=(0, 101), xticks=[1, *range(5, ranks + 1, 5)])
        axes.set_title(escape_math(f"{name} queries"))
        axes.set_ylabel("queries with a match (%)")
        axes.legend(frameon=False, loc="lower right")
    return rasterise(figure)


def draw_robustness(measured: Mapping[str, Mapping[str, Any]]) -> Image:
    """Draw mAP and rank-1 over the share of the person hidden, one panel per part hidden.

    `measured`: as in robustness.json: CLEAN_QUERIES -> figures, and part -> band -> figures:
    `hidden` (mean share), `mAP_masked`, `mAP_unmasked`, `rank1_masked`, `rank1_unmasked`, all in
    [0, 1]. Every curve starts at CLEAN_QUERIES; a band whose `hidden` is None has no point.
    """
    parts = [part for part in measured if part != CLEAN_QUERIES]
    figure, panels = create_panels(2 * len(parts), 3.4, 2.9, columns=max(2, len(parts)))
    for i, (key, title) in enumerate({"mAP": "mAP", "rank1": "rank-1"}.items()):
        row = panels[i * len(parts) :][: len(parts)]
        for axes, part in zip(row, parts, strict=True):
            for label, mode in {"with mask": "masked", "no mask": "unmasked"}.items():
                colour, style = LINES[label]
                points = _curve_points(measured, part, f"{key}_{mode}")
                axes.plot(*points, style, color=colour, label=label, lw=2, marker="o", ms=4)
            _label_axes(axes, part, f"{title} (%)")
        _share_scale(row)
    panels[0].legend(frameon=False, loc="lower left")
    return rasterise(figure)


def draw_robustness_comparison(variants: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Image:
    """Draw mAP with masks over the share of the person hidden: a panel per part, lines by variant.

    `variants`: name -> what `draw_robustness` takes. A variant has a line where it was measured.

    Raises:
        ValueError: No variant was measured on any part.
    """
    parts = list(dict.fromkeys(p for m in variants.values() for p in m if p != CLEAN_QUERIES))
    if not parts:
        raise ValueError("no variant was measured with any part of the person hidden")
    figure, panels = create_panels(len(parts), width=3.4, height=3.1)
    for axes, part in zip(panels, parts, strict=True):
        for i, (name, measured) in enumerate(variants.items()):
            if part in measured:
                colour, style, marker = (kinds[i % len(kinds)] for kinds in VARIANTS)
                points = _curve_points(measured, part, "mAP_masked")
                axes.plot(*points, style, color=colour, label=escape_math(name), lw=2,
                          marker=marker, ms=4.5)  # fmt: skip
        _label_axes(axes, part, "mAP with mask (%)")
    _share_scale(panels)
    labels = {label: line for axes in panels
              for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(list(labels.values()), list(labels), loc="outside lower center", frameon=False,
                  ncols=min(4, len(labels)), handlelength=3)  # fmt: skip
    return rasterise(figure)


def _curve_points(
    measured: Mapping[str, Mapping[str, Any]], part: str, key: str
) -> tuple[list[float], list[float]]:
    """Return percent hidden and the figure in percent, from the clean queries on."""
    points = [{**measured[CLEAN_QUERIES], "hidden": 0.0}, *measured[part].values()]
    points = [point for point in points if point["hidden"] is not None]
    return [100 * point["hidden"] for point in points], [100 * point[key] for point in points]


def _label_axes(axes: Axes, part: str, figure: str) -> None:
    axes.set(xlabel="of the person hidden (%)", ylabel=figure)
    axes.set_title(escape_math(TITLES.get(part, part)))
    axes.set_xlim(left=-2)


def _share_scale(panels: Sequence[Axes]) -> None:
    """Scale all panels from zero to the best of all, so that they can be compared."""
    top = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(0, min(top, 101))


def draw_masks(masks: Mapping[str, NDArray[np.floating[Any]]]) -> Image:
    """Draw which part of the identity space each mask keeps.

    `masks`: space -> [N, D] in [0, 1]. Above: queries (at most 200, evenly spaced) by channels,
    sorted by their mean. Vertical stripes mean the same mask for all queries, changes along a
    column a mask that depends on its query. Below: a histogram of the values.
    """
    figure, panels = create_panels(2 * len(masks), width=6.2, height=2.9, columns=len(masks))
    for i, (space, mask) in enumerate(masks.items()):
        heat, bars = panels[i], panels[len(masks) + i]
        picked = np.linspace(0, len(mask) - 1, min(len(mask), SHOWN_QUERIES)).round().astype(int)
        shown = np.asarray(mask, np.float32)[picked][:, np.argsort(mask.mean(0), kind="stable")]
        shades = heat.imshow(shown, aspect="auto", vmin=0, vmax=1, cmap="viridis")
        heat.set_title(escape_math(f"What each query keeps of space {space}"))
        heat.set(xlabel="dimensions, from least to most kept", ylabel="queries")
        heat.grid(False)
        bar = figure.colorbar(shades, ax=heat, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["0 ignored", "0.5", "1 kept"])
        bars.hist(np.asarray(mask).ravel(), bins=50, range=(0, 1), color="#0072B2")
        bars.set(xlabel="mask value", yticks=[], ylabel="how often", xlim=(0, 1))
        bars.set_title(escape_math(f"Values of the mask in space {space}"))
    return rasterise(figure)


def draw_training_history(history: Sequence[Mapping[str, float]]) -> Image:
    """Draw every column of the training history over its `epoch`, one panel each.

    `history`: one mapping per epoch; a column may be missing in some epochs.

    Raises:
        ValueError: There is nothing to draw.
    """
    names = list(dict.fromkeys(key for entry in history for key in entry if key != "epoch"))
    if not names:
        raise ValueError("the training history has no values to draw")
    figure, panels = create_panels(len(names), width=3.1, height=2.2, columns=min(4, len(names)))
    for axes, name in zip(panels, names, strict=True):
        points = [
            (entry.get("epoch", i), entry[name]) for i, entry in enumerate(history) if name in entry
        ]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color="#0072B2", lw=1.8, marker="o" if len(x) < 3 else None)
        axes.set_title(escape_math(name))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
    return rasterise(figure)


def draw_reliability(calibration: Calibration) -> Image:
    """Draw the reliability of probabilities on held-out persons, and the errors by threshold."""
    figure, (left, right) = create_panels(2, width=4.4, height=3.6)
    predicted, observed, _ = (np.array(x) for x in zip(*calibration.reliability, strict=True))
    left.plot([0, 100], [0, 100], ":", color="#7A7A7A", lw=1.5, label="perfect")
    label = f"held-out persons, ECE {100 * calibration.held_out['ece']:.1f} %"
    left.plot(100 * predicted, 100 * observed, "-o", color="#0072B2", lw=2, ms=5, label=label)
    left.set(xlabel="predicted: same person (%)", ylabel="observed: same person (%)")
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
    return rasterise(figure)


def save_png(path: Path, image: Image) -> None:
    """Write an RGB picture, and create its folder; OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(image))


def create_panels(
    count: int, width: float, height: float, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """Create `count` axes in a grid, sizes in inches, without pyplot's global state."""
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


def rasterise(figure: Figure) -> Image:
    """Render a figure of `create_panels` to RGB uint8 [H, W, 3]."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def escape_math(text: str) -> str:
    """Escape a text, so that matplotlib does not parse it as a formula."""
    return text.replace("$", r"\$")


def _frame_match(image: Image, caption: str, match: bool) -> Image:
    if match:
        return _frame_picture(image, f"✓ {caption}", RIGHT, 5)
    return _frame_picture(image, caption, WRONG, 2)


def _frame_picture(
    image: Image, caption: str, colour: Colour, thickness: int, width: int = 74, height: int = 150
) -> Image:
    """Fit a picture into `width` x `height` pixels, framed, over its caption."""
    border = 5
    cell = np.full((height, width + 2 * border, 3), 255, np.uint8)
    space = (height - 26 - 2 * border, width)
    scale = min(space[0] / image.shape[0], space[1] / image.shape[1])
    h, w = (max(1, round(side * scale)) for side in image.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    top, left = border + space[0] - h, border + (width - w) // 2
    t = thickness
    cell[top - t : top + h + t, left - t : left + w + t] = colour
    cell[top : top + h, left : left + w] = cv2.resize(image, (w, h), interpolation=method)
    _write_text(cell, caption, baseline=height - 8)
    return cell


def _draw_label(text: str, width: int, height: int) -> Image:
    box = np.full((height, width, 3), 255, np.uint8)
    _write_text(box, text, baseline=height // 2, colour=MUTED)
    return box


def _write_text(canvas: Image, text: str, baseline: int, colour: Colour = INK) -> None:
    """Write text in the middle of `canvas`, cut to its width."""
    font, size, weight = _font(), 13, 450
    while (width := cv2.getTextSize((0, 0), text, (0, 0), font, size, weight)[2]) > canvas.shape[1]:
        text = text.rstrip("…")[:-1] + "…"
    left = (canvas.shape[1] - width) // 2
    cv2.putText(canvas, text, (left, baseline), colour, font, size, weight)


@functools.cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def _join_row(cells: Sequence[Image]) -> Image:
    return _stack_rows([cell.swapaxes(0, 1) for cell in cells], GAP).swapaxes(0, 1)


def _stack_rows(cells: Sequence[Image], gap: int = 0) -> Image:
    width = max(cell.shape[1] for cell in cells)
    height = sum(cell.shape[0] for cell in cells) + gap * (len(cells) - 1)
    canvas, top = np.full((height, width, 3), 255, np.uint8), 0
    for cell in cells:
        canvas[top : top + cell.shape[0], : cell.shape[1]] = cell
        top += cell.shape[0] + gap
    return canvas
