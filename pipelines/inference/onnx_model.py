"""An exported model, run by onnxruntime."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from dpmpp_core.config import DataConfig
from dpmpp_core.errors import ConfigError, WeightsError
from dpmpp_core.models.bands import SPACE as BANDS
from dpmpp_core.models.embedded import Embedded
from dpmpp_core.models.pictures import fit_pictures, list_pictures
from dpmpp_core.models.sources import GRAPH_SUFFIX, NAME
from dpmpp_core.retrieval import from_columns, to_columns

INPUT, OCCLUDED = "images", "occluded"
FORMAT = "dpmpp-1"
GPU_PROVIDER = "CUDAExecutionProvider"


def default_graph_path(model: str) -> str:
    """Return the default path of the graph of a saved model."""
    return model if model.endswith(GRAPH_SUFFIX) else f"{model.rstrip('/')}/{NAME}{GRAPH_SUFFIX}"


class OnnxModel:
    """An exported model; `embed` as that of `ReidModel`.

    Args:
        path: The file.
        threads: Threads of onnxruntime; 0 = as many as there are cores.
        device: `cpu`, or `cuda` where this process may use a GPU and onnxruntime can.

    Attributes:
        weights_sha256: Hash of the exported model's weights.
        spaces: Metric space -> width.
        bands: Number of horizontal bands of the person, 0 = none.
        data: The size of its images.

    Raises:
        ConfigError: The extra is not installed.
        WeightsError: The file is missing, damaged, or not written by `export`.
    """

    def __init__(self, path: str | Path, threads: int = 0, device: str = "cpu") -> None:
        runtime = import_package("onnxruntime")
        if not Path(path).is_file():
            raise WeightsError(f"no file {path}: `dpmpp export --model FOLDER` writes one")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        if device == "cuda" and GPU_PROVIDER in runtime.get_available_providers():
            providers.insert(0, GPU_PROVIDER)
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime has many exception types for unreadable files
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
        if columns != [name for name in self._names if name != OCCLUDED]:
            raise WeightsError(f"{path}: its outputs are not those of the spaces it names")

    @property
    def mask_values(self) -> dict[str, int]:
        """Number of values of each space's mask, as `ReidModel.mask_values`."""
        return self.spaces | ({BANDS: self.bands} if self.bands else {})

    def embed(self, images: Any, batch: int = 64) -> Embedded:
        """Embed images; arguments, result and errors are those of `ReidModel.embed`."""
        pictures = list_pictures(images)
        parts = [
            self._session.run(
                None, {INPUT: fit_pictures(pictures[start : start + batch], self.data, start)}
            )
            for start in range(0, len(pictures), batch)
        ]
        widths = to_columns(self.spaces, self.spaces)
        columns = {
            name: np.concatenate([np.zeros((0, width), np.float32), *(part[i] for part in parts)])
            for i, (name, width) in enumerate(widths.items())
        }
        occluded = None
        if OCCLUDED in self._names and parts:
            occluded = np.concatenate([part[self._names.index(OCCLUDED)] for part in parts])
        return Embedded(*from_columns(columns), occluded)


def import_package(name: str) -> Any:
    """Import a package of the extra `onnx`; ConfigError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"ONNX needs the package {name}, which is not installed: pip install 'dpmpp[onnx]'"
        ) from None
