"""The identity of stage 0: what makes its masks anew, and what does not."""

from __future__ import annotations

import pytest

from dpmpp_core.config import DemoConfig, load_config
from dpmpp_core.data.manifest import read_manifest
from dpmpp_core.demo import generate
from pipelines.runtime.resources import Plan
from pipelines.runtime.run import Run
from pipelines.runtime.stage import stage_key
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import Tracking
from pipelines.stages.saliency import _identity

MATTERS = {
    "spectral": ["saliency.target_ratio=0.35", "data.height=128"],
    "given": ["data.height=128"],
    "attention": ["saliency.target_ratio=0.35", "seed=1", "model.stride=12"],
    "sps": ["saliency.target_ratio=0.35", "seed=1", "saliency.epochs=3", "augment.pad=3"],
}
NEVER = ["metric.epochs=3", "occlusion.probability=0.1", "augment.erase=0.1", "prompts.epochs=2"]
UNREAD = {
    "spectral": ["seed=1", "saliency.epochs=3", "model.stride=12"],
    "given": ["seed=1", "saliency.target_ratio=0.35", "model.stride=12"],
    "attention": ["saliency.epochs=3", "augment.pad=3"],
    "sps": [],
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo"
    generate(folder, DemoConfig(train_identities=2, test_identities=2, train_images=2))
    return read_manifest(str(folder))


@pytest.mark.parametrize("provider", list(MATTERS))
def test_masks_are_made_anew_for_what_decides_them_alone(provider, manifest, tmp_path):
    def key(*overrides, workers=1):
        config = load_config("demo", [f"saliency.provider={provider}", *overrides])
        tracking = Tracking(f"sqlite:///{tmp_path}/mlflow.db", None)
        run = Run(config, Storage(str(tmp_path)), tracking, Plan(workers, 1, False, 1, 1))
        return stage_key("saliency", _identity(run, run.config, manifest))

    for override in MATTERS[provider]:
        assert key(override) != key(), override
    for override in NEVER + UNREAD[provider]:
        assert key(override) == key(), override
    assert (key(workers=2) != key()) == (provider == "sps")


def test_providers_do_not_share_masks(manifest, tmp_path):
    tracking = Tracking(f"sqlite:///{tmp_path}/mlflow.db", None)
    keys = set()
    for provider in MATTERS:
        config = load_config("demo", [f"saliency.provider={provider}"])
        run = Run(config, Storage(str(tmp_path)), tracking, Plan(1, 1, False, 1, 1))
        keys.add(stage_key("saliency", _identity(run, run.config, manifest)))
    assert len(keys) == len(MATTERS)
