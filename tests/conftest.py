"""What tests share: sample data, a small data set, one local Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from dpmpp_core.config import DemoConfig

# An example's time says more about the machine's other work than about the code.
settings.register_profile("dpmpp", deadline=None)
settings.load_profile("dpmpp")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

LONGEST = (
    "tests/component/test_index.py",
    "tests/component/test_pipeline.py",
    "tests/system/test_promotion.py",
    "tests/unit/test_bad_input.py",
)

pytest_plugins = ["tests.support.ray_session"]

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data" / "pku_reid"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", help="Markdown file for what the faults of a training cost.")
    parser.addoption("--promotion-table", help="Markdown file for what became of each promotion.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that two processes end at the same time."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_collection_finish() -> None:
    if "mlflow" in sys.modules:
        from tests.support.mlflow_database import create_databases_quickly

        create_databases_quickly()


@pytest.fixture(scope="module", autouse=True)
def forget_tracking_uri() -> Iterator[None]:
    """MLflow keeps the last address for its process and its children."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)


@pytest.fixture(scope="session")
def samples() -> Path:
    """Real images, where a checkout has them beside it."""
    if not SAMPLES.is_dir():
        pytest.skip(f"no sample data at {SAMPLES}")
    return SAMPLES


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set of 8 + 4 persons."""
    from dpmpp_core.demo import generate

    out = tmp_path_factory.mktemp("demo") / "data"
    generate(out, DemoConfig(train_identities=8, test_identities=4, cameras=3, train_images=6))
    return out
