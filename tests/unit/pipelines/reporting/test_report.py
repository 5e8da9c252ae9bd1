"""The report is one safe, self-contained file, and its figures are those it was given."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from dpmpp_core.gallery.html import encode_png
from dpmpp_core.retrieval import Embeddings, evaluate
from pipelines.reporting import figures as pictures
from pipelines.reporting.failures import FailureCard
from pipelines.reporting.html import (
    Command,
    Failures,
    Link,
    Picture,
    Quarantined,
    ReportData,
    build_result_rows,
    build_results_table,
    build_robustness_table,
    write_report,
)
from pipelines.reporting.tables import (
    FUSION_METHODS,
    build_intervals_table,
    build_tracklets_table,
    summarise_cameras,
)
from pipelines.runtime.stage import Stage

HOSTILE = '<script>alert("x")</script>\'"><img src=http://evil.example/x onerror=alert(1)> [red]&'
NOISE = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
FLAT = np.full((200, 300, 3), 255, np.uint8)


def result(m_ap: float) -> dict[str, Any]:
    figures = {"mAP": m_ap, "rank1": 0.7, "rank5": 0.8, "rank10": 0.9, "mINP": 0.2}
    return {
        "masked": figures,
        "unmasked": {**figures, "mAP": 0.5},
        "permuted": {**figures, "mAP": 0.51},
        "static": {**figures, "mAP": 0.52},
        "num_queries": 128,
        "num_skipped": 3,
    }


def metrics() -> dict[str, Any]:
    floor = {"histogram": result(0.1234)["masked"], "chance": {"mAP": 0.01, "rank1": 0.005}}
    return {
        "occluded": result(0.6),
        "holistic": result(0.45),
        "baselines": {"occluded": floor, "holistic": floor},
    }


SURE = {"mean": 0.612, "low": 0.55, "high": 0.678}
ALONE = {"mean": 0.4, "low": None, "high": None}


def camera(own: int, other: int, m_ap: float) -> dict[str, Any]:
    pair = {"query_camera": own, "gallery_camera": other}
    return {**pair, "queries": 9, "mAP": m_ap, "rank1": 0.5}


def tracklets() -> dict[str, Any]:
    found = {way: {"mAP": 0.5 + i / 100, "rank1": 0.5} for i, way in enumerate(FUSION_METHODS)}
    gain = {
        way: {"mean": 0.041, "low": -0.01, "high": 0.09} for way in FUSION_METHODS if way != "fused"
    }
    return {"tracklets": 1234, "persons": 60, **found, "gain": gain}


def full(name: str = "plain") -> ReportData:
    return ReportData(
        title=name,
        facts={"data folder": name, name: 3, "duration": 12.5},
        metrics={**metrics(), name: result(0.3)},
        mask_statistics={
            name: {
                name: {"mean": 0.5, "std_queries": 0.004, "std_channels": 0.2, "participation": 0.9}
            }
        },
        intervals={name: {"masked": {"mAP": SURE, "rank1": ALONE}}},
        strata={
            name: {
                "hidden": {"10-20": {"queries": 17, "mAP": SURE, "rank1": ALONE}},
                "cameras": [camera(1, 2, 0.25), camera(2, 1, 0.75)],
            }
        },
        multi_shot={name: {"4": tracklets()}},
        stages=[Stage(name, "", {}, 3725.0, True), Stage("prompts", "", {}, 61.0, False)],
        quarantine=[Quarantined(name, name, name), Quarantined("b.jpg", "too small", "3 x 3")],
        thumbnails={name: NOISE, "b.jpg": None},
        pictures=[
            Picture(f"of {name}", name, NOISE),
            Picture("second", "", encode_png(FLAT), folded=True),
        ],
        warnings=[f"dead mask {name}"],
        byline=["1 May 2026", f"dpmpp {name}"],
        persons={name: 60},
        failures={name: Failures(7, 128, [FailureCard(name, 1_013, NOISE, NOISE, NOISE, [name])])},
        links=[Link("model", name, "file:///runs/a%20b"), Link(name, name, f"javascript:{name}")],
        commands=[Command(name, f"dpmpp index build --data {name}")],
    )


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.folded = ""  # text inside of <details>, but for its summary
        self._open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("details", "summary"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("details", "summary"):
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        words = " ".join(data.split()) + " " if data.strip() else ""
        self.text += words
        if self._open and self._open[-1] == "details":
            self.folded += words

    def images(self) -> list[str]:
        return [str(attrs["src"]) for tag, attrs in self.tags if tag == "img"]


def written(tmp_path: Path, report: ReportData) -> Page:
    path = tmp_path / "deep" / "report.html"
    write_report(path, report)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return Page(path)


@pytest.mark.parametrize("name", ["plain", HOSTILE])
def test_report_is_self_contained_and_nothing_in_it_is_code(tmp_path: Path, name: str) -> None:
    page = written(tmp_path, full(name))
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not any(key.startswith("on") for key in attrs)
        for key in ("src", "srcset", "action"):
            assert str(attrs.get(key, "data:")).startswith("data:")
        # Followed by a click only; never a script.
        assert str(attrs.get("href", "#")).startswith(("#", "file:///", "https://"))
    html = (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    assert " ".join(name.split()) in page.text


def test_every_picture_is_embedded_and_whole(tmp_path: Path) -> None:
    images = written(tmp_path, full()).images()
    assert len(images) == 6  # three of a failure, two given, one thumbnail
    kinds = []
    for image in images:
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", image).groups()  # type: ignore[union-attr]
        assert cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), 1) is not None
        kinds.append(kind)
    assert kinds == [*["jpeg"] * 5, "png"]


def test_embedded_colours_are_rgb(tmp_path: Path) -> None:
    red = np.zeros((40, 40, 3), np.uint8)
    red[..., 0] = 255
    (image,) = written(tmp_path, ReportData("t", pictures=[Picture("a", "", red)])).images()
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(image.split(",")[1]), np.uint8), 1)
    assert pixels[20, 20].tolist() == [0, 0, 255]  # OpenCV decodes to BGR


def test_report_shows_the_figures(tmp_path: Path) -> None:
    text = written(tmp_path, full()).text
    assert "mAP 60.0 50.0 +10.0 12.3 1.0" in text
    assert "rank-5 80.0 80.0 +0.0 80.0 —" in text
    assert "occluded 60.0 51.0 52.0 +9.0" in text
    assert "Occluded: 128 queries, 3 of them skipped" in text
    assert "Plain: 128 queries of 60 persons" in text
    assert "0.0040 (the same for all)" in text
    assert "dead mask plain." in text
    assert "1 h 02 min reused" in text and "1 min 01 s" in text


@pytest.mark.parametrize("name", ["plain", HOSTILE])
def test_every_entry_of_the_contents_leads_to_its_part(tmp_path: Path, name: str) -> None:
    page = written(tmp_path, full(name))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    links = [str(attrs["href"]) for tag, attrs in page.tags if tag == "a"]
    anchors = [link[1:] for link in links if link.startswith("#")]
    assert anchors[:2] == ["results", "worst-failures"] and anchors[-1] == "for-researchers"
    assert anchors[-3:-1] == ["files-and-next-commands", "files-left-out"]
    assert [ids.count(anchor) for anchor in anchors] == [1] * len(anchors)
    assert [anchor for anchor in ids if anchor in anchors] == anchors  # in the order of the page


def test_long_tables_are_folded_and_the_answer_is_not(tmp_path: Path) -> None:
    page = written(tmp_path, full())
    for shown in (
        "rank-5 80.0 80.0 +0.0 80.0 —", "occluded 60.0 51.0 52.0 +9.0", "10-20 % hidden 17",
        "prompts 1 min 01 s", "data folder plain", "1 2 1 — 25.0", "plain 4 1,234 60",
        "0.0040 (the same for all)",
    ):  # fmt: skip
        assert shown in page.folded
    for shown in ("mAP 60.0 50.0 +10.0 12.3", "dpmpp index build", "dead mask plain", "too small"):
        assert shown in page.text.replace(page.folded, "")
    open_folds = [attrs for tag, attrs in page.tags if tag == "details" and "open" in attrs]
    assert not open_folds
    assert 'alt="second"' not in (tmp_path / "deep/report.html").read_text().split("<details")[0]


def test_the_verdict_comes_first_with_what_limits_it(tmp_path: Path) -> None:
    gain = {"mean": 0.1, "low": 0.05, "high": 0.15}
    sure = {"mAP": SURE, "rank1": SURE}
    intervals = {
        "occluded": {"masked": sure, "unmasked": sure, "gain": {"mAP": gain, "rank1": gain}}
    }
    report = ReportData("t", metrics=metrics(), intervals=intervals, persons={"occluded": 8})
    page = written(tmp_path, report)
    sentence = (
        "On occluded queries a query's own mask is worth +10.0 mAP [+5.0, +15.0] over no mask."
    )
    assert (
        page.text.index(sentence) < page.text.index("With 8 persons") < page.text.index("Results")
    )
    assert "occluded mAP 61.2 [55.0, 67.8] 61.2 [55.0, 67.8] +10.0 [+5.0, +15.0]" in page.text
    assert len(page.images()) == 1  # the difference, drawn
    assert "own mask is" not in written(tmp_path / "none", ReportData("t", metrics=metrics())).text


def test_a_link_is_one_only_to_a_page_or_a_file(tmp_path: Path) -> None:
    page = written(tmp_path, full())
    links = [str(attrs["href"]) for tag, attrs in page.tags if tag == "a"]
    assert [link for link in links if not link.startswith("#")] == ["file:///runs/a%20b"]
    assert "1 May 2026 · dpmpp plain" in page.text
    assert "right, only 1,013th" in page.text and "7 of 128 have another person first" in page.text


def test_one_query_set_without_baselines(tmp_path: Path) -> None:
    page = written(tmp_path, ReportData("t", metrics={"holistic": result(0.45)}))
    assert "mAP 45.0 50.0 -5.0 — —" in page.text
    assert "occluded" not in page.text


def test_nothing_but_a_title(tmp_path: Path) -> None:
    page = written(tmp_path, ReportData("bare"))
    assert "every file could be read" in page.text
    assert page.images() == []


def test_long_quarantine_is_counted_in_full_and_listed_in_part(tmp_path: Path) -> None:
    rows = [Quarantined(f"{i}.jpg", "blank", "one colour") for i in range(250)]
    text = written(tmp_path, ReportData("t", quarantine=rows)).text
    assert "blank 250" in text and "The first 100 of 250 files" in text
    assert "99.jpg" in text and "100.jpg" not in text


def test_missing_and_nan_figures_are_dashes() -> None:
    broken = {"s": {"masked": {"mAP": float("nan")}, "unmasked": {"mAP": 0.5}}}
    assert build_result_rows(broken)[0] == ("s", "mAP", "—", "50.0", "—", "—", "—")


def test_no_negative_zero() -> None:
    tied = {"s": {"masked": {"mAP": 0.49999}, "unmasked": {"mAP": 0.5}}}
    assert build_result_rows(tied)[0][2:5] == ("50.0", "50.0", "+0.0")


def test_terminal_table_shows_both_sets_and_takes_names_literally() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(build_results_table({**metrics(), "[red]": result(0.3)}))
    text = out.getvalue()
    for shown in ("occluded", "holistic", "[red]", "60.0", "+10.0", "12.3"):
        assert shown in text
    assert "baselines" not in text


def test_what_evaluate_returns_can_be_reported(tmp_path: Path) -> None:
    query, gallery = tiny(0), tiny(1)
    page = written(tmp_path, ReportData("t", metrics={"occluded": evaluate(query, gallery, 0)}))
    assert "4 queries" in page.text


def tiny(camid: int) -> Embeddings:
    rng = np.random.default_rng(camid)
    pids = np.arange(4)
    features = np.eye(4, dtype=np.float32) + 0.1 * rng.random((4, 4), dtype=np.float32)
    masks = rng.random((4, 4), dtype=np.float32)
    paths = [f"{camid}/{pid}" for pid in pids]
    return Embeddings({"v": features}, {"v": masks}, pids, np.full(4, camid), paths)


def count(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((image == colour).all(2).sum())


def test_ranked_lists_frame_matches_in_green_and_leave_junk_out() -> None:
    query, gallery = tiny(0), tiny(1)
    asked: list[str] = []

    def load(path: str) -> pictures.Image:
        asked.append(path)
        return NOISE

    image = pictures.draw_ranked_lists(query, gallery, [2, 0], load, k=3)
    assert image.dtype == np.uint8 and image.ndim == 3
    assert asked.count("0/2") == 1 and asked.count("1/2") >= 2
    assert count(image, pictures.RIGHT) > 0 and count(image, pictures.WRONG) > 0

    gallery.camids[2] = 0  # now junk for query 2
    asked.clear()
    image = pictures.draw_ranked_lists(query, gallery, [2], load, k=10)
    assert "1/2" not in asked and len(asked) == 1 + 2 * 3
    assert count(image, pictures.RIGHT) == 0


def test_contact_sheet_takes_any_sizes_and_long_captions() -> None:
    images = [NOISE, FLAT, NOISE[:3, :2], np.zeros((1, 400, 3), np.uint8)]
    sheet = pictures.draw_contact_sheet(images, ["a", "x" * 300, "", "päd ✓"], columns=3)
    one = pictures.draw_contact_sheet(images[:1], ["a"], columns=3)
    assert sheet.shape[0] == 2 * one.shape[0] and sheet.shape[1] > 2 * one.shape[1]
    with pytest.raises(ValueError, match="at least one"):
        pictures.draw_contact_sheet([], [], 3)
    with pytest.raises(ValueError):
        pictures.draw_contact_sheet(images, ["too few"], 3)


@pytest.mark.parametrize("sets", [["occluded"], ["occluded", "holistic", "a $ sign_b"]])
def test_plots_draw_something(sets: list[str], tmp_path: Path) -> None:
    curve = np.linspace(0.2, 1, 50)
    masks = np.random.default_rng(0).random((300, 40))
    lines = {"with mask": curve, "no mask": curve**2, "histogram": curve[:1], "other": curve}
    drawn = [pictures.draw_cmc_curves({name: lines for name in sets})]
    drawn.append(pictures.draw_masks({name: masks for name in sets}))
    for image in drawn:
        assert image.dtype == np.uint8 and len(np.unique(image)) > 20
    pictures.save_png(tmp_path / "sub" / "a.png", drawn[0])
    read = cv2.imread(str(tmp_path / "sub" / "a.png"))
    np.testing.assert_array_equal(read[..., ::-1], drawn[0])


def test_loss_curves_with_gaps_and_one_epoch() -> None:
    assert pictures.draw_training_history([{"epoch": 1, "total": 2.0}]).std() > 0
    gaps = [{"epoch": 1, "a": 1.0}, {"epoch": 2, "a": float("nan"), "b": 2.0}]
    assert (
        pictures.draw_training_history(gaps).shape[1]
        > pictures.draw_training_history(gaps[:1]).shape[1]
    )
    with pytest.raises(ValueError, match="no values"):
        pictures.draw_training_history([{"epoch": 1}])


def hidden_curve(fall: float, parts: tuple[str, ...] = ("any", "top")) -> dict[str, Any]:
    """Made-up figures; the last band of `top` was hit by no query."""

    def point(share: float | None) -> dict[str, Any]:
        height = None if share is None else 0.8 - fall * share
        figures = {
            f"{f}_{mode}": height for f in ("mAP", "rank1") for mode in ("masked", "unmasked")
        }
        return {"queries": 9, "missed": 0, "hidden": share, **figures}

    bands = {f"{low}-{low + 10}": point(low / 100 + 0.05) for low in range(0, 70, 10)}
    curve = {"clean": point(0.0), **{part: dict(bands) for part in parts}}
    if "top" in parts:
        curve["top"]["60-70"] = point(None)
    return curve


def test_robustness_is_drawn_part_by_part_and_listed() -> None:
    one, two = (pictures.draw_robustness(hidden_curve(0.5, p)) for p in (("top",), ("any", "top")))
    assert one.shape[0] < two.shape[0] and one.shape[1] == two.shape[1]
    assert np.ptp(one) == np.ptp(two) == 255
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(build_robustness_table(hidden_curve(0.5)))
    text = console.export_text()
    assert text.count("top") == 1 and "77.5" in text and "—" in text


def test_variants_are_drawn_side_by_side() -> None:
    made_up = {"plain": 0.9, "random $erasing$": 0.7, "SPT": 0.5, "full": 0.3}
    curves = {f"made up: {name}": hidden_curve(fall) for name, fall in made_up.items()}
    curves["made up: silhouettes only"] = hidden_curve(0.2, ("any",))
    drawn = pictures.draw_robustness_comparison(curves)
    assert drawn.shape[1] > 2 * 300 and np.ptp(drawn) == 255
    with pytest.raises(ValueError, match="no variant"):
        pictures.draw_robustness_comparison({"made up": {"clean": hidden_curve(0.1)["clean"]}})


# --- how sure, and of which queries -------------------------------------------------------------


def test_intervals_strata_and_tracklets_are_on_the_page(tmp_path: Path) -> None:
    text = written(tmp_path, full()).text
    assert "plain, with mask 61.2 [55.0, 67.8] 40.0" in text  # one person has no interval
    assert "plain, 10-20 % hidden 17 61.2 [55.0, 67.8]" in text
    assert "plain queries by cameras" in text and "1 2 1 — 25.0 2 75.0 —" in text
    row = "plain 4 1,234 60 50.0 51.0 52.0 53.0 54.0 +4.1 [-1.0, +9.0] +4.1 [-1.0, +9.0]"
    assert row in text


def test_they_are_on_the_terminal_too() -> None:
    report = full("[red]")
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(build_intervals_table(report.intervals, report.strata))
    console.print(build_tracklets_table(report.multi_shot))
    shown = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "[red], with mask │ │ 61.2 [55.0, 67.8] │ 40.0" in shown
    assert "[red], 10-20 % hidden │ 17 │ 61.2 [55.0, 67.8]" in shown
    assert "[red] │ 4 │ 51.0 │ 54.0 │ 50.0 │ +4.1 [-1.0, +9.0]" in shown
    line = summarise_cameras("occluded", report.strata["[red]"])
    assert line == (
        "occluded: mAP of 2 pairs of cameras from 25.0 (camera 1 to 2, 9 queries) to 75.0 "
        "(camera 2 to 1, 9 queries)"
    )
    assert summarise_cameras("x", {"cameras": [camera(1, 2, 0.5)]}) is None


def test_a_report_without_them_has_no_such_section(tmp_path: Path) -> None:
    text = written(tmp_path, ReportData("t", metrics=metrics())).text
    assert "Intervals, and" not in text and "Several pictures" not in text
