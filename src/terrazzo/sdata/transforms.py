"""Transformations of SpatialData as plain matrices: from the records on disk, or from its objects in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrazzo.errors import InputError

_XY = ("x", "y")
_DEPTH = 16  # of sequences within sequences
_BAD = (AttributeError, IndexError, KeyError, TypeError, ValueError)


@dataclass(frozen=True, eq=False)
class System:
    """How an element lies in one coordinate system.

    Attributes
    ----------
    matrix
        float64 (3, 3): from the element's own x, y, 1 to those of the system; invertible.
    unit
        Of the system's axes as they say it ("micrometer"); "" or "unit" where they do not.
    """

    matrix: NDArray[np.float64]
    unit: str = ""

    def apply(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return positions (n, 2) of the element in the system."""
        return xy @ self.matrix[:2, :2].T + self.matrix[:2, 2]

    @property
    def is_identity(self) -> bool:
        """The element's own coordinates are those of the system."""
        return bool(np.allclose(self.matrix, np.eye(3), rtol=0, atol=1e-12))


def from_records(records: Any, where: str) -> dict[str, System]:
    """Read ``coordinateTransformations`` of an element on disk: one record a coordinate system.

    Parameters
    ----------
    records
        A list of dicts as spatialdata writes them: ``type`` identity, scale, translation, affine, rotation, mapAxis,
        sequence or byDimension, with ``input`` and ``output`` that name their axes.
    where
        The element, for messages.

    Raises
    ------
    InputError
        Records of another form; a transformation that is not known or cannot be inverted.
    """
    systems = {}
    try:
        for record in records:
            output = record["output"]
            matrix, axes = _matrix(record, _axes(record["input"]), 0)
            units = {str(axis.get("unit", "")) for axis in output["axes"] if axis["name"] in _XY}
            unit = units.pop() if len(units) == 1 else ""
            systems[str(output["name"])] = System(
                _plane(matrix, _axes(record["input"]), axes), unit
            )
    except _BAD as error:
        raise InputError(
            f"{where}: a coordinate transformation cannot be read ({error})"
        ) from error
    return systems


def from_objects(transformations: Any, where: str) -> dict[str, System]:
    """Read ``attrs["transform"]`` of an element in memory: transformations of spatialdata by coordinate system.

    Raises
    ------
    InputError
        Something that has no ``to_affine_matrix``, or that cannot be inverted.
    """
    systems = {}
    for name, one in dict(transformations or {}).items():
        try:
            matrix = np.asarray(
                one.to_affine_matrix(input_axes=_XY, output_axes=_XY), dtype=np.float64
            )
            systems[str(name)] = System(_plane(matrix, _XY, _XY))
        except _BAD as error:
            raise InputError(
                f"{where}: cannot read the transformation {one!r} ({error})"
            ) from error
    return systems


def _axes(system: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(axis["name"]) for axis in system["axes"])


def _plane(
    matrix: NDArray[np.float64], before: Sequence[str], after: Sequence[str]
) -> NDArray[np.float64]:
    """Keep what x and y become of x and y, 3 x 3."""
    rows = [list(after).index(axis) for axis in _XY]
    columns = [list(before).index(axis) for axis in _XY]
    plane = np.eye(3)
    plane[:2] = matrix[np.ix_(rows, [*columns, matrix.shape[1] - 1])]
    if not np.isfinite(plane).all() or abs(np.linalg.det(plane)) < 1e-300:
        raise ValueError("it cannot be inverted")
    return plane


def _matrix(
    record: Mapping[str, Any], before: tuple[str, ...], depth: int
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return the matrix over all axes, (after + 1, before + 1), and the axes after it."""
    if depth > _DEPTH:
        raise ValueError("it is nested too deeply")
    kind, n = record["type"], len(before)
    matrix, after = np.eye(n + 1), before
    if kind == "scale":
        matrix[range(n), range(n)] = _numbers(record["scale"], (n,))
    elif kind == "translation":
        matrix[:n, n] = _numbers(record["translation"], (n,))
    elif kind == "rotation":
        matrix[:n, :n] = _numbers(record["rotation"], (n, n))
    elif kind == "affine":
        after = _axes(record["output"]) if "output" in record else before
        matrix = np.zeros((len(after) + 1, n + 1))
        matrix[:-1], matrix[-1, -1] = _numbers(record["affine"], (len(after), n + 1)), 1
    elif kind == "mapAxis":  # axis after: axis before
        after = (
            _axes(record["output"]) if "output" in record else tuple(map(str, record["mapAxis"]))
        )
        matrix = np.zeros((len(after) + 1, n + 1))
        matrix[-1, -1] = 1
        for row, axis in enumerate(after):
            matrix[row, before.index(record["mapAxis"][axis])] = 1
    elif kind == "sequence":
        for step in record["transformations"]:
            one, after = _matrix(step, after, depth + 1)
            matrix = one @ matrix
    elif kind == "byDimension":
        after = _axes(record["output"])
        matrix = np.zeros((len(after) + 1, n + 1))
        matrix[-1, -1] = 1
        for part in record["transformations"]:
            mine = _axes(part["input"])
            one, made = _matrix(part, mine, depth + 1)
            columns = [*map(before.index, mine), n]
            for row, axis in enumerate(made):
                matrix[after.index(axis), columns] = one[row]
    elif kind != "identity":
        raise ValueError(f"type {kind!r} is not known")
    return matrix, after


def _numbers(values: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if found.shape != shape:
        raise ValueError(f"{found.shape} numbers where {shape} belong")
    return found
