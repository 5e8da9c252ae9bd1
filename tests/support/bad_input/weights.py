"""Weights that run code, lie about themselves, or are no numbers: refused by every loader."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from dpmpp_core.config import ModelConfig, load_config
from dpmpp_core.models.clip import build_clip
from dpmpp_core.models.reid import ReidModel, load_model, save_model, start_clip
from dpmpp_core.models.saved import weights_sha256
from dpmpp_core.models.tensors import UNSAFE
from dpmpp_core.retrieval import masked_similarity, refuse_unusable, to_columns
from dpmpp_core.retrieval.ranking import evaluate_ranking
from pipelines.runtime.storage import Storage
from pipelines.training.checkpoints import Checkpoints, serialize_state
from tests.support.bad_input.row import Outcome, Row, refusal

SMALL = ["data.height=64", "data.width=32", "model.pretrained=null"]
OPEN_CLIP, TIMM = "dpmpp-small", "timm/test_vit"


class Harmful:
    """A pickle of it makes a file when it is loaded as code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.marker),)


def sly(marker: Path) -> bytes:
    """A pickle that fails when loaded as weights alone, so that open_clip tries a second time."""
    head = b"\x80\x02ccollections\nOrderedDict\n)RNb0"
    return head + pickle.dumps(Harmful(marker), protocol=0)


def code(given: str, load: Callable[[Path, Path], object], says: str, plain: bool = False) -> Row:
    """`load` gets a folder and the marker that the code in its files would make."""

    def attempt(folder: Path) -> Outcome:
        marker = folder / "it ran"
        with patch.dict(os.environ, {UNSAFE: "1"}):  # the most dangerous setting there is
            if plain:
                try:
                    load(folder, marker)
                    said = "accepted"
                except pickle.UnpicklingError as error:
                    said = f"UnpicklingError: {str(error).split('.')[0]}"
            else:
                said = refusal(load, folder, marker)
        return Outcome(said, "the code ran" if marker.exists() else "the code did not run")

    return Row(given, attempt, says, "the code did not run")


def checkpoint(backbone: str, suffix: str, write: Callable[[Path, Path], object]) -> Callable:
    def load(folder: Path, marker: Path) -> object:
        path = folder / f"weights.{suffix}"
        write(path, marker)
        config = load_config("demo", SMALL).model
        return build_clip(
            config.model_copy(update={"backbone": backbone, "checkpoint": str(path)}), 64, 32
        )

    return load


def saved_by_torch(path: Path, marker: Path) -> None:
    torch.save({"state_dict": Harmful(marker)}, path)


def pickled(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Harmful(marker)}))


def pickled_slyly(path: Path, marker: Path) -> None:
    path.write_bytes(sly(marker))


def published(backbone: str, tag: str, repo: str, file: str) -> Callable:
    """The published weights of a tag, replaced in the hub's cache on this machine."""

    def load(folder: Path, marker: Path) -> object:
        cached = folder / f"models--{repo.replace('/', '--')}"
        (cached / "snapshots/abc").mkdir(parents=True)
        (cached / "refs").mkdir()
        (cached / "refs/main").write_text("abc")
        saved_by_torch(cached / "snapshots/abc" / file, marker)
        hub = "huggingface_hub.constants"
        with patch(f"{hub}.HF_HUB_CACHE", str(folder)), patch(f"{hub}.HF_HUB_OFFLINE", True):
            return build_clip(ModelConfig(backbone=backbone, pretrained=tag), 64, 32)

    return load


def model_folder(folder: Path, marker: Path) -> object:
    shutil.copytree(saved(), folder / "model")
    saved_by_torch(folder / "model/model.safetensors", marker)
    return load_model(folder / "model")


def training_checkpoint(folder: Path, marker: Path) -> object:
    checkpoints = Checkpoints(Storage(str(folder)), "run")
    checkpoints.save(1, serialize_state({"task": Harmful(marker)}), 0.0)
    return checkpoints.load(1)


@cache
def model() -> ReidModel:
    config = load_config("demo", SMALL)
    return ReidModel(config.model, config.data, start_clip(config)).eval()


@cache
def saved() -> Path:
    """A good saved model, for all rows."""
    import tempfile

    folder = Path(tempfile.mkdtemp()) / "model"
    save_model(model(), folder)
    return folder


def card() -> dict[str, Any]:
    return json.loads((saved() / "model.json").read_text())


def described(name: str, text: str | Mapping[str, Any]) -> Row:
    """A saved model with another card."""

    def attempt(folder: Path) -> Outcome:
        shutil.copytree(saved(), folder / "model")
        content = text if isinstance(text, str) else json.dumps({**card(), "model": text})
        (folder / "model/model.json").write_text(content)
        return Outcome(refusal(load_model, folder / "model"), "")

    return Row(f"card of a saved model: {name}", attempt, "(Weights|Config)Error", "")


def save_changed(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """The saved model with other weights, whose hash the card has."""
    state = {name: tensor.clone() for name, tensor in model().state_dict().items()}
    change(state)
    save_file(state, folder / "model.safetensors")
    facts = {**card(), "weights_sha256": weights_sha256(state)}
    (folder / "model.json").write_text(json.dumps(facts))


def weighed(given: str, change: Callable[[dict[str, Tensor]], object], says: str) -> Row:
    """A saved model whose weights are refused."""

    def attempt(folder: Path) -> Outcome:
        save_changed(folder, change)
        return Outcome(refusal(load_model, folder), "")

    return Row(given, attempt, says, "")


def embedded(given: str, change: Callable[[dict[str, Tensor]], object], says: str) -> Row:
    """A model that loads, since its weights are finite, and gives features of no use."""

    def attempt(folder: Path) -> Outcome:
        save_changed(folder, change)
        pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), np.uint8)
        made = load_model(folder).embed(pictures)
        columns = to_columns(made.features, made.masks)
        return Outcome(refusal(refuse_unusable, columns, ["query/a.jpg", "query/b.jpg"]), "")

    return Row(given, attempt, says, "")


def overflowing(state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if name.startswith("necks.visual") and name.endswith(".weight"):
            tensor.fill_(3e38)
        if name == "necks.visual.running_var":
            tensor.fill_(1e-20)


def zeroed(state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if name.startswith("necks.visual") and name.endswith(".weight"):
            tensor.zero_()


def filled(value: float) -> Callable[[dict[str, Tensor]], object]:
    def change(state: dict[str, Tensor]) -> None:
        next(iter(state.values())).fill_(value)

    return change


def saving(folder: Path) -> Outcome:
    config = load_config("demo", SMALL)
    broken = ReidModel(config.model, config.data, start_clip(config))
    shutil.copytree(saved(), folder / "model")
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    said = refusal(save_model, broken, folder / "model")
    same = (folder / "model/model.safetensors").read_bytes() == (
        saved() / "model.safetensors"
    ).read_bytes()
    return Outcome(said, f"the older model {'as it was' if same else 'is gone'}")


def constant(_: Path) -> Outcome:
    """Twenty gallery pictures that look alike to the model, one of them right."""
    alike = np.ones((20, 8), np.float32)
    scores = masked_similarity(alike[:1], None, alike)
    found = [
        evaluate_ranking(scores, np.zeros(1), np.roll(np.arange(20), k), np.zeros(1), np.ones(20))
        for k in (0, 7, 19)
    ]
    measured = sorted({f"{result.metrics()['mAP']:.3f}" for result in found})
    return Outcome(f"mAP {', '.join(measured)}, wherever the right one stands", "")


def header(given: str, data: bytes, says: str = "damaged|does not load") -> Row:
    """The same lie told to the saved model's and to the checkpoint's loader."""

    def attempt(folder: Path) -> Outcome:
        shutil.copytree(saved(), folder / "model")
        (folder / "model/model.safetensors").write_bytes(data)
        config = load_config("demo", SMALL).model
        path = str(folder / "model/model.safetensors")
        loads = [lambda: load_model(folder / "model")]
        for backbone in (OPEN_CLIP, TIMM):
            other = config.model_copy(update={"backbone": backbone, "checkpoint": path})
            loads.append(lambda other=other: build_clip(other, 64, 32))  # type: ignore[misc]
        said = [refusal(load) for load in loads]
        refused = sum(text.startswith("WeightsError") for text in said)
        return Outcome(said[0], f"refused by {refused} of 3 loaders")

    return Row(f"safetensors, {given}", attempt, says, "refused by 3 of 3 loaders")


def safetensors(
    tensors: Mapping[str, Any] | bytes, body: int = 8, size: int | None = None
) -> bytes:
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + bytes(body)


def tensor(kind: str = "F32", shape: int = 2, start: int = 0, end: int = 8) -> dict[str, Any]:
    return {"dtype": kind, "shape": [shape], "data_offsets": [start, end]}


ALONE = "does not hold weights alone"

ROWS = [
    *(
        code(f"code in model.checkpoint=weights.{suffix}, {name}",
             checkpoint(backbone, suffix, write), ALONE)
        for backbone, name in ((OPEN_CLIP, "open_clip"), (TIMM, "timm"))
        for suffix, write in (("pt", saved_by_torch), ("bin", pickled), ("npz", saved_by_torch))
    ),
    code("code in a file that fails as weights first, open_clip",
         checkpoint(OPEN_CLIP, "pt", pickled_slyly), "WeightsError"),
    code("the same, timm", checkpoint(TIMM, "pt", pickled_slyly), "WeightsError"),
    code("code in a file named .safetensors",
         checkpoint(OPEN_CLIP, "safetensors", saved_by_torch), "header too large"),
    code("code in the cached file of a published tag, open_clip",
         published("ViT-B-16", "laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
                   "open_clip_pytorch_model.bin"), ALONE),
    code("code in the cached file of a published tag, timm",
         published(TIMM, "r160_in1k", "timm/test_vit.r160_in1k", "model.safetensors"),
         "does not load as timm/test_vit"),
    code("code in a saved model's folder", model_folder, "damaged"),
    code("code in a training checkpoint", training_checkpoint, "Weights only load failed", True),
    header("no bytes", b""),
    header("a header larger than the file", safetensors({"a": tensor()}, size=10**6)),
    header("a header of 2^63 bytes", safetensors({"a": tensor()}, size=2**63)),
    header("data beyond the end", safetensors({"a": tensor(shape=200, end=800)})),
    header("two tensors in one place", safetensors({"a": tensor(), "b": tensor()})),
    header("ends before it starts", safetensors({"a": tensor(start=8, end=0)})),
    header("a negative place", safetensors({"a": tensor(start=-8, end=0)})),
    header("an unknown type", safetensors({"a": tensor("F99")})),
    header("a type of another size", safetensors({"a": tensor("F64")})),
    header("a shape of 2^63", safetensors({"a": tensor(shape=2**63)})),
    header("a header that is no JSON", safetensors(b"{")),
    header("brackets without end", safetensors(b"[" * 100_000)),
    header("no tensor", safetensors({}, 0), "hash is not the one"),
    described("brackets without end", "[" * 100_000),
    described("a number of 5,000 digits", "9" * 5000),
    described("a list", "[]"),
    described("a backbone to be fetched", {"backbone": "hf-hub:somebody/evil"}),
    described("a backbone in a folder", {"backbone": "local-dir:/etc"}),
    described("another network", {"backbone": OPEN_CLIP, "taps": [1, 2], "bands": 0}),
    weighed("NaN in the weights of a saved model", filled(float("nan")), "NaN or infinite values"),
    weighed("infinity in them", filled(float("inf")), "NaN or infinite values"),
    weighed("a tensor missing from them", lambda s: s.pop(next(iter(s))), "fit the card.*Missing"),
    weighed("a tensor too many", lambda s: s.update(x=torch.ones(2)), "not fit the card.*\"x\""),
    Row("model with NaN, to be saved over another", saving, "WeightsError: the model to be written",
        "the older model as it was"),
    embedded("finite weights that overflow in use", overflowing,
             r"feature_visual of query/a.jpg holds NaN, infinity .*\(2 of 2"),
    embedded("weights that make every feature zero", zeroed,
             r"feature_visual of query/a.jpg holds .*nothing but zeros \(2 of 2"),
    Row("model to which all pictures are alike", constant, "^mAP 0.050, wherever", ""),
]  # fmt: skip
