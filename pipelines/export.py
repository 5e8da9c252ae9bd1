"""A trained model as one ONNX file, and that file run by onnxruntime.

It is here and not in the core, whose dependencies stay those of the method: onnx, onnxscript and
onnxruntime are an extra, `onnx`.
"""

from __future__ import annotations

import importlib
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
from dpmpp_core.config import DataConfig, DemoConfig
from dpmpp_core.data.demo.generate import draw_shots
from dpmpp_core.data.demo.plan import plan_shots
from dpmpp_core.data.files import write_atomically
from dpmpp_core.data.images import decode
from dpmpp_core.errors import ArgumentError, ConfigError, WeightsError
from dpmpp_core.models.reid import NAME, Embedded, ReidModel, fitted, load_model
from dpmpp_core.models.saved import read_card
from dpmpp_core.retrieval import from_columns, to_columns

SUFFIX = ".onnx"
INPUT = "images"
FORMAT = "dpmpp-1"
TOLERANCE = 1e-4
CHECKED = (1, 3, 64, 32)  # pictures of each batch that is compared: a hundred
LARGEST = 1_900_000_000  # bytes of weights: a Protobuf message, so an ONNX file, ends at 2 GiB


def graph_beside(model: str) -> str:
    """Where the graph of the model in a folder is, unless told otherwise."""
    return model if model.endswith(SUFFIX) else f"{model.rstrip('/')}/{NAME}{SUFFIX}"


def export(model: Path, out: Path) -> dict[str, Any]:
    """Write a saved model as one ONNX graph, checked against the model itself.

    Input `images`, uint8 [N, height, width, 3] RGB, N free: pictures resized already and nothing
    else, since the graph normalises them. Outputs `feature_SPACE` and `mask_SPACE`, float32
    [N, width], of every metric space. The file's metadata tell `weights_sha256`, `spaces`, `height`
    and `width`. It appears at `out` once a hundred drawn people, in batches of several sizes, gave
    what the model gives.

    Args:
        model: folder of a saved model.
        out: the file, replaced where there is one.

    Returns:
        what the command prints: `onnx`, `weights_sha256`, `spaces`, `height`, `width`, `bytes`,
        `images` compared, `max_abs_difference` over all outputs.

    Raises:
        ArgumentError: `out` is no file to be written.
        ConfigError: the extra is not installed.
        WeightsError: as `load_model`; too large for one file; or the graph gives other numbers than
            the model by more than 1e-4: says where and by how much, and nothing is written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _package(package)
    if out.is_dir() or out.suffix != SUFFIX:
        raise ArgumentError(f"--out {out}: name the file to be written, NAME{SUFFIX}")
    loaded = load_model(model)
    size = sum(p.numel() * p.element_size() for p in loaded.state_dict().values())
    if size > LARGEST:
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
        difference = _refuse_another(loaded, OnnxModel(unfinished), out)
    return {
        "onnx": str(out),
        "weights_sha256": facts["weights_sha256"],
        "spaces": loaded.spaces,
        "height": loaded.data.height,
        "width": loaded.data.width,
        "bytes": out.stat().st_size,
        "images": sum(CHECKED),
        "max_abs_difference": difference,
    }


class OnnxModel:
    """An exported model; `embed` as that of `ReidModel`.

    Args:
        path: the file.
        threads: of onnxruntime; 0 = as many as there are cores.

    Attributes:
        weights_sha256: of the model that was exported.
        spaces: metric space -> width.
        bands: horizontal bands of the person, 0 = none.
        data: the size of its pictures.

    Raises:
        ConfigError: the extra is not installed.
        WeightsError: no such file, a damaged one, or one that `export` did not write.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        runtime = _package("onnxruntime")
        if not Path(path).is_file():
            raise WeightsError(f"no file {path}: `dpmpp export --model FOLDER` writes one")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in runtime.get_available_providers()]
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime raises kinds of its own, all meaning: unreadable
            problem = " ".join(str(error).split())
            raise WeightsError(f"{path} does not load as an ONNX model: {problem[:200]}") from None
        self._names = [output.name for output in self._session.get_outputs()]
        facts = self._session.get_modelmeta().custom_metadata_map
        if facts.get("format") != FORMAT:
            raise WeightsError(f"{path} is no model of `dpmpp export`, or of another version of it")
        try:
            self.weights_sha256: str = facts["weights_sha256"]
            self.spaces: dict[str, int] = json.loads(facts["spaces"])
            self.bands = int(facts["bands"])
            self.data = DataConfig(height=int(facts["height"]), width=int(facts["width"]))
            columns = list(to_columns(self.spaces, self.spaces))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = " ".join(str(error).split())
            raise WeightsError(f"{path}: damaged metadata: {problem[:200]}") from None
        if columns != self._names:
            raise WeightsError(f"{path}: its outputs are not those of the spaces it names")

    def embed(self, images: Any, batch: int = 64) -> Embedded:
        """Embed pictures; arguments, result and errors are those of `ReidModel.embed`."""
        if isinstance(images, (str, Path)):
            images = [images]
        parts = [
            self._session.run(
                None, {INPUT: fitted(images[start : start + batch], self.data, start)}
            )
            for start in range(0, len(images), batch)
        ]
        widths = to_columns(self.spaces, self.spaces)
        columns = {
            name: np.concatenate([part[i] for part in parts])
            if parts
            else np.zeros((0, widths[name]), np.float32)
            for i, name in enumerate(self._names)
        }
        return Embedded(*from_columns(columns))


class _Graph(nn.Module):
    """What is exported: pixels in, the columns of `to_columns` out, in their order."""

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
        columns = to_columns(features, reading.masks)
        return tuple(columns[name].float() for name in _columns(self.model))


def _columns(model: ReidModel) -> list[str]:
    """Names of the graph's outputs, in their order."""
    return list(to_columns(model.spaces, model.spaces))


def _write(model: ReidModel, path: Path, facts: Mapping[str, str]) -> None:
    example = torch.zeros(2, model.data.height, model.data.width, 3, dtype=torch.uint8)
    loud = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loud]
    for logger in loud:
        logger.setLevel(logging.ERROR)
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
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)


def _refuse_another(model: ReidModel, written: OnnxModel, out: Path) -> float:
    """The largest difference over all outputs; WeightsError beyond TOLERANCE."""
    people = _people(sum(CHECKED))
    largest, start = 0.0, 0
    for count in CHECKED:
        batch = people[start : start + count]
        start += count
        wanted, given = (m.embed(batch, count) for m in (model, written))
        columns = to_columns(given.features, given.masks)
        for name, values in to_columns(wanted.features, wanted.masks).items():
            difference = float(np.abs(values - columns[name]).max())
            if not difference <= TOLERANCE:  # NaN too
                raise WeightsError(
                    f"{out} is not written: its {name} differs from the model's by "
                    f"{difference:.1e} in a batch of {count}, {TOLERANCE:.0e} is allowed"
                )
            largest = max(largest, difference)
    return largest


@cache
def _people(count: int) -> list[npt.NDArray[np.uint8]]:
    """Drawn people: what the model is shown should look like what it is made for."""
    config = DemoConfig(train_identities=count, test_identities=2, cameras=2, train_images=1)
    shots = [shot for shot in plan_shots(config) if shot.folder == "bounding_box_train"]
    by_camera = [[shot for shot in shots if shot.camid == camera] for camera in (1, 2)]
    drawn = [picture for own in by_camera if own for picture in draw_shots((config, own))]
    return [decode(picture.jpeg) for picture in drawn]


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"ONNX needs the package {name}, which is not installed: pip install 'dpmpp[onnx]'"
        ) from None
