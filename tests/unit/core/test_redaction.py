"""Secrets in texts that are shown or recorded, and texts without any."""

from __future__ import annotations

import pytest

from dpmpp_core.redaction import redact

SECRET = "pa55w0rd-of-mine"


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_KEY", "DB_PASS", "SIG", "HF_TOKEN", "MY_PASSPHRASE", "DB_PWD"]
)
def test_values_of_secret_variables_go(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    assert redact(f"denied: {SECRET}") == "denied: ***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://u:p@h/x", "http://***@h/x"),
        ("http://user:pa/ss@host/x", "http://***@host/x"),
        ("https://blob/x?se=1&sig=abc%2F123", "https://blob/x?se=1&sig=***"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("authorization: basic dXNlcjpwYXNz", "authorization: basic ***"),
    ],
)
def test_secrets_in_texts_go(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "models:/name@champion",
        "http://mlflow:5000/models/name@champion",
        "basic settings of the compass",
        "https://host/x?design=round&bypass=1",
    ],
)
def test_other_texts_stay(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPASS", "basic settings")
    assert redact(text) == text


def test_a_variable_may_vanish_while_a_text_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's telemetry removes one in another thread."""

    class Vanishing(dict):
        def __getitem__(self, name: str) -> str:
            raise KeyError(name)

    monkeypatch.setattr("os.environ", Vanishing(GONE_TOKEN="12345678"))
    assert redact("a text") == "a text"
