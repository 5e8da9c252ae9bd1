"""Text that people and records may see: no secrets, and nothing that moves a terminal's cursor."""

from __future__ import annotations

import os
import re
import unicodedata

HIDDEN = "***"
SHORTEST = 8  # characters; a shorter value of a variable would be found in innocent words
_NAME = r"[\w.-]*(?:secret|token|passw(?:or)?d|api_?key|access_?key|credential|signature)"
# scheme://user:password@host, also s3://key:secret@bucket.
_LOGIN = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^/\s?#]*@", re.IGNORECASE)
# SQLAlchemy takes passwords with slashes and more.
_DATABASE = re.compile(
    r"\b((?:postgres|mysql|mariadb|mssql|oracle)[a-z0-9+]*://)\S*@", re.IGNORECASE
)
_PARAMETER = re.compile(rf"([?&;]{_NAME}[\w-]*=)[^&\s#'\"]+", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(rf"{_NAME}$", re.IGNORECASE)


def redact(text: str) -> str:
    """`text` without secrets, each replaced by `***`.

    Secrets are logins in URIs (`scheme://user:password@`), parameters of URIs whose names say so
    (`?token=`), and the values, 8 characters or longer, of environment variables whose names end
    so (`AWS_SECRET_ACCESS_KEY`, `MLFLOW_TRACKING_PASSWORD`, `HF_TOKEN`). Everything that prints,
    logs or records a URI or the text of an error goes through here.
    """
    text = _LOGIN.sub(rf"\1{HIDDEN}@", _DATABASE.sub(rf"\1{HIDDEN}@", text))
    text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and value in text and _SECRET_VARIABLE.match(name):
            text = text.replace(value, HIDDEN)
    return text


def one_line(text: str) -> str:
    """`redact`ed, on one line, with control characters written out (`\\x1b`).

    Names of files may hold any: line ends would forge lines, escape codes rule a terminal.
    """
    return " ".join("".join(_visible(c) for c in redact(text)).split())


def _visible(character: str) -> str:
    kind = unicodedata.category(character)
    if character in "\t\n\r " or kind not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return character.encode("unicode_escape").decode()
