"""A gallery on disk, searched with the masked metric, exactly or by sketches."""

from dpmpp_core.index.facts import describe_index, refuse_no_rows
from dpmpp_core.index.gallery import Added, GalleryIndex
from dpmpp_core.index.manifest import ModelVersion
from dpmpp_core.index.names import LabelNames, find_number, invert, number_names, show_labels
from dpmpp_core.index.search import RowFilter, SearchResult, merge_results, search
from dpmpp_core.index.segments import ROW_SCHEMA, STORED, Block, Stored

__all__ = [
    "ROW_SCHEMA", "STORED", "Added", "Block", "GalleryIndex", "LabelNames", "ModelVersion",
    "RowFilter", "SearchResult", "Stored", "describe_index", "find_number", "invert",
    "merge_results", "number_names", "refuse_no_rows", "search", "show_labels",
]  # fmt: skip
