"""index.json: the model of the features of an index, and its segments."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dpmpp_core.errors import DataError
from dpmpp_core.index.names import LabelNames
from dpmpp_core.index.segments import Stored

MANIFEST = "index.json"
FORMAT, NAMED_FORMAT = 1, 2  # the latter with names, which older code cannot show


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelVersion(_Record):
    """The model whose features an index holds.

    Attributes:
        weights_sha256: of the weights, as in the model's card.
        spaces: metric space -> dimensions.
    """

    weights_sha256: str
    spaces: dict[str, int]


class SketchFile(_Record):
    """Sketches of the rows of a segment, for approximate search: file, its format, directions."""

    file: str = Field(pattern=r"^[0-9a-f]{32}\.safetensors$")
    format: int
    directions: int = Field(gt=0)


class Segment(_Record):
    """A segment: file and number of rows, number and file of deleted ones, sketches if any.

    All files are in the folder `segments`.
    """

    file: str = Field(pattern=r"^[0-9a-f]{32}\.arrow$")
    rows: int = Field(gt=0)
    deleted: int = Field(0, ge=0)
    tombstones: str | None = Field(None, pattern=r"^[0-9a-f]{32}-[0-9a-f]{8}\.npy$")
    sketches: SketchFile | None = None

    @property
    def files(self) -> list[str]:
        """All files of the segment, that of the rows first."""
        sketches = self.sketches.file if self.sketches else None
        return [name for name in (self.file, self.tombstones, sketches) if name]


class Manifest(_Record):
    """Content of index.json.

    Attributes:
        source: folder or URI of the model.
        stored: type of the stored features.
        names: of persons and cameras; in the file only if there are any.
    """

    format: int = FORMAT
    model: ModelVersion
    source: str
    stored: Stored
    segments: tuple[Segment, ...] = ()
    names: LabelNames = LabelNames()

    def to_json(self) -> str:
        """Return the text of index.json."""
        unused = {"names"} if self.format == FORMAT else None
        return json.dumps(self.model_dump(exclude=unused), indent=1) + "\n"


def read_index_manifest(folder: Path) -> Manifest:
    """Read index.json in a folder; DataError if it is missing, damaged or of another format."""
    try:
        value = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no {MANIFEST}: not an index; `dpmpp index build` creates one"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder}/{MANIFEST} cannot be read: {error}") from None
    written = value.get("format") if isinstance(value, dict) else None
    if written not in (FORMAT, NAMED_FORMAT):
        raise DataError(f"{folder}: index format {written}, this code reads {NAMED_FORMAT}")
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{folder}/{MANIFEST} is damaged: {problem}") from None


def name_of(model: ModelVersion) -> str:
    """Name a model in a message: the start of its hash, its spaces."""
    spaces = ", ".join(f"{space} {width}" for space, width in model.spaces.items())
    return f"{model.weights_sha256[:12]} with the spaces {spaces}"
