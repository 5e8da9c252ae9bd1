"""The manifests, rendered once, and KubeRay's CRDs where they are at hand."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from pipelines.deploy.render import Object, render_overlay

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "infra" / "k8s"
OVERLAYS = ("local", "cpu", "gpu", "gpu-multi-node")
NEAR = ROOT.parent / "shared" / "k8s" / "kuberay-1.7.0"
RECORDED_PODS = ROOT.parent / "shared" / "k8s" / "operator-made"


@cache
def rendered(overlay: str) -> list[Object]:
    return render_overlay(MANIFESTS, overlay)


@pytest.fixture(scope="session")
def crds() -> Path:
    """Not ours to ship: KUBERAY_CRDS names their folder, or they lie beside the repository."""
    folder = Path(os.environ.get("KUBERAY_CRDS", NEAR))
    if not folder.is_dir():
        pytest.skip("KubeRay's CRDs are not at hand (KUBERAY_CRDS)")
    return folder
