"""The servers of infra/local: jobs do not have the login of MLflow's admin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests

from infra.local import services
from infra.local.services import Services, create_login

TRAINER = {"username": "trainer", "password": "a password"}


def test_jobs_log_in_as_a_trainer_with_a_password_of_its_own(tmp_path: Path) -> None:
    started = Services(tmp_path)
    assert started.mlflow_login["MLFLOW_TRACKING_USERNAME"] == "trainer"
    assert started.mlflow_login["MLFLOW_TRACKING_PASSWORD"] != started.passwords["mlflow"]


@pytest.mark.parametrize(
    "status, text, fails",
    [(200, "{}", False), (400, '{"error_code": "RESOURCE_ALREADY_EXISTS"}', False),
     (401, "You are not authenticated", True)],
)  # fmt: skip
def test_the_admin_creates_the_login_once(
    monkeypatch: pytest.MonkeyPatch, status: int, text: str, fails: bool
) -> None:
    asked: list[Any] = []

    def post(url: str, **options: Any) -> requests.Response:
        asked.append((url, options["json"], options["auth"]))
        answer = requests.Response()
        answer.status_code, answer._content = status, text.encode()
        return answer

    monkeypatch.setattr(services.requests, "post", post)
    if fails:
        with pytest.raises(SystemExit, match="the login trainer: You are not authenticated"):
            create_login("http://here:5000", "secret", TRAINER)
    else:
        create_login("http://here:5000", "secret", TRAINER)
    assert asked == [("http://here:5000/api/2.0/mlflow/users/create", TRAINER, ("admin", "secret"))]
