"""Write `678b521.tar.gz`: a model folder, an index and a registered version of that commit.

    git worktree add /tmp/old678 678b521
    cd /tmp/old678 && PYTHONPATH=/tmp/old678 python .../tests/data/older/write.py OUT.tar.gz

Runs with the code of that commit only. The backbone is timm's `test_vit` with random weights,
rounded so that they pack well; images are of the generator, 128 x 64 pixels.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import cv2
import mlflow
import torch
from dpmpp_core.data.demo import generate
from mlflow.tracking import MlflowClient
from pipelines.calibrate import calibrate_index
from pipelines.evaluate import evaluate_model
from pipelines.index import Images, build, compact
from pipelines.register import register_version
from pipelines.run import Options, begin, opened, prepared_data
from pipelines.search import Request, run_search

from dpmpp_core.config import DemoConfig, load_config
from dpmpp_core.models.reid import ReidModel, save_model, start_clip

OVERRIDES = [
    "data.height=128", "data.width=64", "model.backbone=timm/test_vit", "model.pretrained=null",
    "saliency.provider=spectral", "tracking.model_name=older",
]  # fmt: skip
STEPS = 4  # values of a weight within one standard deviation


def write_images(folder: Path) -> None:
    drawn = DemoConfig(
        train_identities=2, test_identities=4, cameras=3, train_images=2, gallery_images=2,
        query_images=1,
    )  # fmt: skip
    generate(folder, drawn)
    for file in folder.rglob("*.jpg"):
        small = cv2.resize(cv2.imread(str(file)), (64, 128), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(file), small)


def write_model(folder: Path) -> None:
    config = load_config("market1501_vit", OVERRIDES)
    model = ReidModel(config.model, config.data, start_clip(config))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.numel() > 1 and (step := weight.std() / STEPS) > 0:
                weight.copy_((weight / step).round() * step)
        if model.bands is not None:
            model.bands.patches[-1].weight *= 30  # so that masks differ between images
    save_model(model, folder)


def write_version(data: Path, model: Path, folder: Path, target: Path) -> None:
    uri = f"sqlite:///{folder}/mlflow.db"
    options = Options(
        str(data), "market1501_vit", OVERRIDES, str(folder / "runs"), tracking_uri=uri
    )
    config = load_config("market1501_vit", OVERRIDES)
    with opened(options, [config], "register") as (run, source, _):
        prepared = prepared_data(run, source)
        begin(run, prepared, "older")
        evaluated = evaluate_model(run, prepared, str(model), "")
        version = register_version(run, prepared, evaluated, model)
        stage = run.folder(evaluated)
        metrics = json.loads((stage / "stage.json").read_text())
    mlflow.set_tracking_uri(uri)
    mlflow.artifacts.download_artifacts(version.source, dst_path=str(target / "version"))
    found = MlflowClient(uri).get_model_version("older", version.version)
    facts = {"tags": found.tags, "description": found.description, "summary": metrics["summary"]}
    (target / "version.json").write_text(json.dumps(facts, indent=1))


def write_index(data: Path, model: Path, target: Path) -> None:
    folder = target / "index"
    build(str(folder), str(model), "float32", Images(str(data), "gallery"))
    calibrate_index(str(folder), Images(str(data)), 0.05)
    compact(str(folder), approximate=True)
    request = Request(str(folder), str(data / "query"), model=str(model), top=4)
    (target / "search.json").write_text(json.dumps(run_search(request)["queries"], indent=1))


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, target = Path(name), Path(name) / "older"
        target.mkdir()
        data, model = target / "images", target / "model"
        write_images(data)
        write_model(model)
        write_index(data, model, target)
        write_version(data, model, folder, target)
        copies = target / "version" / "artifacts" / "model"
        shutil.rmtree(copies)  # the model folder again
        with tarfile.open(out, "w:gz") as archive:
            archive.add(target, "older")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
