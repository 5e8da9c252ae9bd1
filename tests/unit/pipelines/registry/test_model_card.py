"""What a model card must not hold."""

from __future__ import annotations

from typing import Any

import pytest

from dpmpp_core.config import load_config
from pipelines.registry import model_card


def test_a_card_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("header", "data", "figures", "ablation"):
        monkeypatch.setattr(model_card, f"_format_{part}", lambda *_: ["# A part"])
    config = load_config("demo", ["model.checkpoint=https://ann:s3cret@example.com/clip.pt"])
    nothing: Any = None
    card = model_card.render_model_card(
        type("Record", (), {"measured": nothing})(),  # type: ignore[arg-type]
        config,
        nothing,
    )
    assert "example.com/clip.pt" in card and "s3cret" not in card
