"""Redaction of text for messages and records: no secrets, no control characters."""

from __future__ import annotations

import os
import re
import unicodedata

REPLACEMENT = "***"
MIN_SECRET_LENGTH = 8  # characters; a shorter value of a variable would match ordinary words
_NAME = (  # not PWD, the working folder
    r"[\w.-]*(?:secret(?:_?key)?|token|passw(?:or)?d|passphrase|(?<![a-z])pass|api_?key"
    r"|access_?key|credential|signature|(?<![a-z])sig|(?<=[_.?&;-])pwd)"
)
# scheme://user:password@host, also s3://key:secret@bucket.
_LOGIN = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^/\s?#]*@", re.IGNORECASE)
# The same with a slash in the password; HOST:PORT/PATH is no login.
_SLASHED = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^/\s?#:@]*:(?!\d+/)[^\s@]*@", re.IGNORECASE)
_HEADER = re.compile(r"\b(bearer|authorization:\s*basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
# SQLAlchemy accepts passwords with slashes and more.
_DATABASE = re.compile(
    r"\b((?:postgres|mysql|mariadb|mssql|oracle)[a-z0-9+]*://)\S*@", re.IGNORECASE
)
_PARAMETER = re.compile(rf"([?&;]{_NAME}[\w-]*=)[^&\s#'\"]+", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(rf"{_NAME}$", re.IGNORECASE)


def redact(text: str) -> str:
    """Return `text` with each secret replaced by `***`.

    Secrets are logins in URIs (`scheme://user:password@`), parameters of URIs (`?token=`, `?sig=`),
    credentials of HTTP headers (`Bearer ...`), and the values of environment variables, 8
    characters or longer, by their names (`AWS_SECRET_ACCESS_KEY`, `MLFLOW_TRACKING_PASSWORD`,
    `HF_TOKEN`, `DB_PASS`, `DB_PWD`). URIs and texts of errors must pass through here before they
    are printed, logged or recorded.
    """
    for pattern in (_DATABASE, _LOGIN, _SLASHED):
        text = pattern.sub(rf"\1{REPLACEMENT}@", text)
    text = _PARAMETER.sub(rf"\1{REPLACEMENT}", _HEADER.sub(rf"\1 {REPLACEMENT}", text))
    for name in list(os.environ):
        value = os.environ.get(name, "")  # MLflow's telemetry removes variables in a thread
        if len(value) >= MIN_SECRET_LENGTH and value in text and _SECRET_VARIABLE.match(name):
            text = text.replace(value, REPLACEMENT)
    return text


def one_line(text: str) -> str:
    """Return `redact`ed text on one line, its control characters escaped.

    Names of files may hold any: line ends would forge lines, escape codes control a terminal.
    """
    return " ".join("".join(_visible(c) for c in redact(text)).split())


def _visible(character: str) -> str:
    kind = unicodedata.category(character)
    if character in "\t\n\r " or kind not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return character.encode("unicode_escape").decode()
