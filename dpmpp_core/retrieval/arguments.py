"""Conversion of arguments to tensors by metric space, and errors that name the argument."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = Tensor | NDArray[np.floating]
Spaces = Array | Mapping[str, Array]

# Below this, and above its inverse, squares of float32 are not safe.
SMALLEST = 1e-24


def by_space(value: Spaces) -> dict[str, Array]:
    """Return a mapping by space; a single array is the space ''."""
    return dict(value) if isinstance(value, Mapping) else {"": value}


def refuse_other_spaces(
    name: str, given: Mapping[str, object], queries: Mapping[str, object]
) -> None:
    """Raise ValueError unless the argument `name` has the spaces of the query."""
    if given.keys() != queries.keys():
        raise ValueError(
            f"{name} has the spaces {sorted(given)} but query has {sorted(queries)}; "
            "give all three the same ones"
        )


def of_space(space: str) -> str:
    """Return " of space 'NAME'" for a message, with its leading blank; "" for no name."""
    return f" of space '{space}'" if space else ""


def tensor(value: Tensor | NDArray[Any]) -> Tensor:
    """Return an array as a tensor of the same memory, which must not be written to."""
    if isinstance(value, Tensor):
        return value
    with warnings.catch_warnings():
        # torch warns about read-only arrays, such as mapped ones.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(value)


def matrix(name: str, space: str, value: Array) -> Tensor:
    """Return `value` as a tensor [N, D] that shares its memory if possible."""
    value = tensor(value)
    if value.ndim != 2 or value.shape[1] == 0:
        raise ValueError(f"{name}{of_space(space)} must be [N, D], got shape {tuple(value.shape)}")
    return value


def refuse_other_width(space: str, query: Tensor, gallery: Tensor) -> None:
    """Raise ValueError if the numbers of dimensions differ."""
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query{of_space(space)} has {query.shape[1]} dimensions but gallery "
            f"has {gallery.shape[1]}"
        )


def refuse_bad_mask(space: str, mask: Tensor, query: Tensor) -> None:
    """Raise ValueError for another shape than the query's, NaN, all zero, or a negative value."""
    if mask.shape != query.shape:
        raise ValueError(
            f"query_mask{of_space(space)} has shape {tuple(mask.shape)} but query "
            f"{tuple(query.shape)}"
        )
    largest("query_mask", space, mask, "is all zero")
    refuse("query_mask", space, (mask < 0).any(1), "has a negative value")


def equal_neighbours(mask: Tensor) -> int:
    """Return the largest divisor of D whose groups of neighbours are equal in all masks [Q, D].

    1 for masks of a value per dimension; the width of a band for masks of bands.
    """
    changes = (mask[:, 1:] != mask[:, :-1]).any(0).nonzero()[:, 0] + 1
    return math.gcd(mask.shape[1], *changes.tolist())


def sum_neighbours(squares: Tensor, size: int) -> Tensor:
    """Sum groups of `size` neighbouring dimensions: [N, D / size] of [N, D]."""
    return squares if size == 1 else squares.unflatten(1, (-1, size)).sum(2)


def largest(name: str, space: str, x: Tensor, when_zero: str) -> Tensor:
    """Return the largest size in each row, [N, 1], to divide by it before squaring."""
    size = x.detach().abs().amax(1, keepdim=True)
    refuse(name, space, ~size.isfinite()[:, 0], "has NaN or infinity")
    refuse(name, space, size[:, 0] == 0, when_zero)
    return size.clamp_min(SMALLEST)


def refuse(name: str, space: str, bad: Tensor, why: str) -> None:
    """Raise ValueError, naming the first of the rows where bool [N] `bad` holds."""
    if bad.any():
        rows = bad.nonzero()[:, 0].tolist()
        more = f" (and {len(rows) - 1} more rows)" if len(rows) > 1 else ""
        raise ValueError(f"{name}{of_space(space)}: row {rows[0]}{more} {why}")
