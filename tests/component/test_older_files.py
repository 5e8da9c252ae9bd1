"""Files of an older commit are read by the code of today: a model, an index, a registered version.

`tests/data/older/write.py` wrote them, and says how.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

import dpmpp_core
from dpmpp_core.index import GalleryIndex
from pipelines.gallery.search import SearchRequest, run_search
from pipelines.registry.promotion import PromotionRequest, promote

OLDER = sorted((Path(__file__).parents[1] / "data" / "older").glob("*.tar.gz"))
GATE: dict[str, Any] = {
    "floors": {"holistic.mAP": 0.01},
    "identities": 2,
    "mask_std": None,
    "reproduce": 0.005,
    "latency_ms": None,
    "size_mb": 10,
}


@pytest.fixture(scope="module", params=OLDER, ids=lambda file: file.name.partition(".")[0])
def older(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked files; the version gets its model back, which is stored once."""
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    shutil.copytree(folder / "older/model", folder / "older/version/artifacts/model")
    return folder / "older"


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_the_model_and_the_index_give_the_hits_that_they_gave(older: Path) -> None:
    assert len(GalleryIndex.open(older / "index")) == 8
    for approximate in (False, True):
        request = SearchRequest(
            index=str(older / "index"), query=str(older / "images/query"),
            model=str(older / "model"), top=4, approximate=approximate,
        )  # fmt: skip
        queries = run_search(request)["queries"]
        assert len(queries) == 4
        for query, before in zip(queries, read(older / "search.json"), strict=True):
            for hit, was in zip(query["hits"], before["hits"], strict=True):
                assert Path(hit["image"]).name == Path(was["image"]).name
                assert hit["score"] == pytest.approx(was["score"], abs=1e-4)
                assert hit["probability"] == pytest.approx(was["probability"], abs=1e-3)


def test_the_model_embeds(older: Path) -> None:
    model = dpmpp_core.load_model(older / "model")
    card = read(older / "model/model.json")
    images = sorted((older / "images/query").glob("*.jpg"))
    embedded = model.embed(images)
    assert {space: f.shape for space, f in embedded.features.items()} == {
        space: (len(images), width) for space, width in card["spaces"].items()
    }


def test_the_version_is_loaded_measured_again_and_promoted(older: Path, tmp_path: Path) -> None:
    uri, facts = f"sqlite:///{tmp_path}/mlflow.db", read(older / "version.json")
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("older", tmp_path.as_uri()))
    client.create_registered_model("older")
    client.create_model_version(
        "older", str(older / "version"), run.info.run_id, tags=facts["tags"],
        description=facts["description"],
    )  # fmt: skip
    client.set_registered_model_alias("older", "candidate", "1")
    gate = tmp_path / "gate.yaml"
    gate.write_text(json.dumps(GATE))
    result = promote(
        PromotionRequest(name="older", gate=str(gate), data=str(older / "images"), tracking_uri=uri)
    )
    assert not result["refused_by"], result["checks"]
    names = {check["name"] for check in result["checks"]}
    assert {"files", "images", "loads", "reproduces holistic.mAP"} <= names
    assert int(client.get_model_version_by_alias("older", "champion").version) == 1
