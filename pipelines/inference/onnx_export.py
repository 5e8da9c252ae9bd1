"""Export a trained model as one ONNX file.

onnx, onnxscript and onnxruntime are the extra `onnx`; the core depends on none of them.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dpmpp_core import __version__
from dpmpp_core.config import DemoConfig
from dpmpp_core.data.files import ensure_writable, write_atomically
from dpmpp_core.data.images import decode
from dpmpp_core.demo.generate import draw_shots
from dpmpp_core.demo.plan import plan_shots
from dpmpp_core.errors import ArgumentError, WeightsError
from dpmpp_core.models.reid import ReidModel, load_model
from dpmpp_core.models.saved import read_card
from dpmpp_core.models.sources import GRAPH_SUFFIX, NAME
from dpmpp_core.retrieval import to_columns
from pipelines.inference.onnx_model import (
    FORMAT,
    INPUT,
    OCCLUDED,
    OnnxModel,
    import_package,
)

TOLERANCE = 1e-4
CHECKED_BATCHES = (1, 3, 64, 32)  # images of each batch that is compared
MAX_WEIGHT_BYTES = 1_900_000_000  # a Protobuf message, so an ONNX file, ends at 2 GiB


def export(model: Path, out: Path) -> dict[str, Any]:
    """Write a saved model as one ONNX graph, checked against the model itself.

    Input `images`, uint8 [N, height, width, 3] RGB, N free, resized but not normalised: the graph
    does that. Outputs `feature_SPACE` and `mask_SPACE`, float32 [N, width], of every metric space;
    of a model with an attention mask also `occluded`, float32 [N, rows, columns], see `Embedded`.
    The file's metadata hold `weights_sha256`, `spaces`, `height` and `width`. It appears at `out`
    once its outputs agree with the model's for a hundred drawn people in batches of several sizes.

    Args:
        model: Folder of a saved model.
        out: The file, replaced where there is one.

    Returns:
        What the command prints: `onnx`, `weights_sha256`, `spaces`, `height`, `width`, `bytes`,
        `images` compared, `max_abs_difference` over all outputs.

    Raises:
        ArgumentError: `out` is not a file name of the format.
        DataError: It cannot be written.
        ConfigError: The extra is not installed.
        WeightsError: As `load_model`; the model is too large for one file; or an output differs
            from the model's by more than 1e-4, and nothing is written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_package(package)
    if out.is_dir() or out.suffix != GRAPH_SUFFIX:
        raise ArgumentError(f"--out {out}: name the file to be written, NAME{GRAPH_SUFFIX}")
    ensure_writable(out.parent)
    loaded = load_model(model)
    size = sum(p.numel() * p.element_size() for p in loaded.state_dict().values())
    if size > MAX_WEIGHT_BYTES:
        raise WeightsError(f"{model}: {size / 1e9:.1f} GB of weights; one ONNX file holds 2 GB")
    card = read_card(model, NAME)
    facts = {
        "format": FORMAT,
        "version": __version__,
        "weights_sha256": str(card["weights_sha256"]),
        "backbone": loaded.config.backbone,
        "spaces": json.dumps(loaded.spaces),
        "height": str(loaded.data.height),
        "width": str(loaded.data.width),
        "bands": str(loaded.config.bands),
    }
    with write_atomically(out) as unfinished:
        _write(loaded, unfinished, facts)
        difference = _compare_outputs(loaded, OnnxModel(unfinished), out)
    return {
        "onnx": str(out),
        "weights_sha256": facts["weights_sha256"],
        "spaces": loaded.spaces,
        "height": loaded.data.height,
        "width": loaded.data.width,
        "bytes": out.stat().st_size,
        "images": sum(CHECKED_BATCHES),
        "max_abs_difference": difference,
    }


class _Graph(nn.Module):
    """The exported module: pixels in, the columns of `to_columns` out, in their order."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: ReidModel) -> None:
        super().__init__()
        self.model = model
        std, mean = torch.tensor(model.data.std), torch.tensor(model.data.mean)
        self.register_buffer("scale", (1 / (255 * std))[:, None, None])
        self.register_buffer("shift", (mean / std)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pixels = images.permute(0, 3, 1, 2).float() * self.scale - self.shift
        reading = self.model(pixels)
        features = self.model.retrieval_features(reading.features)
        columns = dict(to_columns(features, reading.masks))
        if reading.visibility is not None and reading.visibility.occluded is not None:
            columns[OCCLUDED] = reading.visibility.occluded.sigmoid()
        return tuple(columns[name].float() for name in _columns(self.model))


def _columns(model: ReidModel) -> list[str]:
    """Return the names of the graph's outputs, in their order."""
    amodal = model.visibility is not None and model.visibility.amodal
    return [*to_columns(model.spaces, model.spaces), *([OCCLUDED] if amodal else [])]


def _write(model: ReidModel, path: Path, facts: Mapping[str, str]) -> None:
    example = torch.zeros(2, model.data.height, model.data.width, 3, dtype=torch.uint8)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # onnxscript, onnx_ir and torch.onnx log much
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Graph(model).eval(),
                (example,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=_columns(model),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
            assert program is not None
            program.model.metadata_props.update(facts)
            program.save(path, external_data=False)
    finally:
        logging.disable(disabled)


def _compare_outputs(model: ReidModel, exported: OnnxModel, out: Path) -> float:
    """Return the largest difference over all outputs; raise WeightsError beyond TOLERANCE."""
    people = _draw_people(sum(CHECKED_BATCHES))
    largest, start = 0.0, 0
    for count in CHECKED_BATCHES:
        batch = people[start : start + count]
        start += count
        expected, actual = (m.embed(batch, count) for m in (model, exported))
        columns = to_columns(actual.features, actual.masks)
        for name, values in to_columns(expected.features, expected.masks).items():
            difference = float(np.abs(values - columns[name]).max())
            if not difference <= TOLERANCE:  # NaN too
                raise WeightsError(
                    f"{out} is not written: its {name} differs from the model's by "
                    f"{difference:.1e} in a batch of {count}, {TOLERANCE:.0e} is allowed"
                )
            largest = max(largest, difference)
    return largest


@cache
def _draw_people(count: int) -> list[npt.NDArray[np.uint8]]:
    """Draw people, so that the compared inputs resemble those the model is for."""
    config = DemoConfig(train_identities=count, test_identities=2, cameras=2, train_images=1)
    shots = [shot for shot in plan_shots(config) if shot.folder == "bounding_box_train"]
    by_camera = [[shot for shot in shots if shot.camid == camera] for camera in (1, 2)]
    drawn = [picture for own in by_camera if own for picture in draw_shots((config, own))]
    return [decode(picture.jpeg) for picture in drawn]
