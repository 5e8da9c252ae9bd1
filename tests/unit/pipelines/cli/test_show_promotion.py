"""What a promotion says on the terminal and as Markdown."""

from __future__ import annotations

from dpmpp_core.gate import Check
from pipelines.cli.show_promotion import show_promotion
from pipelines.registry.promotion import render_verdict

CHECKS = [
    Check("floor occluded.mAP", True, 0.5566, 0.3, "55.7 % reaches 30.0 %"),
    Check("files", False, "a" * 64, "b" * 64, "the stored files are not those | registered"),
]
REFUSED = {
    "name": "dpmpp",
    "version": 3,
    "champion": 2,
    "notes": ["the champion was measured anew"],
    "refused_by": ["files"],
    "refused": "dpmpp version 3 refused by: files",
    "checks": [vars(check) for check in CHECKS],
    "changed": False,
}


def test_a_refusal_names_the_check_and_why(capsys):
    show_promotion(REFUSED, "default", explain=False)
    shown = capsys.readouterr().out
    assert "files: the stored files are not those" in shown and "measured anew" in shown
    assert "0.5566" in shown and "failed" in shown and "champion already" not in shown


def test_explain_adds_what_the_gate_asks(capsys):
    show_promotion(REFUSED, "default", explain=True)
    shown = capsys.readouterr().out
    assert "FAILED files:" in shown and "passed floor occluded.mAP: 55.7 % reaches" in shown
    assert "dataset = off: identity of the data set" in shown
    assert "no_worse = {'mAP': 0.02, 'rank1': 0.03}: figure: margin" in shown


def test_outcomes(capsys):
    moved = {"name": "dpmpp", "version": 3, "changed": True, "champion": 3, "previous": 2}
    for result, says in (
        (moved, "version 3 is the champion, version 2 the previous one"),
        (moved | {"previous": None}, "version 3 is the champion, the first one"),
        (moved | {"changed": False}, "version 3 is the champion already"),
        (moved | {"changed": False, "champion": 2}, "version 3 passes; nothing was changed"),
    ):
        show_promotion(result, "default", explain=False)
        assert says in capsys.readouterr().out


def test_markdown_is_a_table_that_no_sentence_breaks():
    stored = REFUSED | {"gate": {"name": "demo"}, "time": "now", "by": "me"}
    page = render_verdict(stored)
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and "\\|" in rows[-1]
    assert page.startswith("# Promotion of dpmpp version 3: refused")
    assert "against version 2" in page and "Note: the champion was measured anew." in page
