"""Transformations: each kind, on axes in any order, against sums done by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from spatialdata_stores import IDENTITY, system

from terrazzo.errors import InputError
from terrazzo.sdata.transforms import from_objects, from_records

XY = np.array([[1.0, 10.0], [2.0, 5.0]])


def mapped(record: dict[str, Any], axes: str = "xy", after: str | None = None) -> Any:
    whole = {"input": system(axes, axes), "output": system("global", after or axes), **record}
    return from_records([whole], "shapes 'a'")["global"].apply(XY)


@pytest.mark.parametrize(
    ("record", "axes", "expected"),
    [
        (IDENTITY, "xy", XY),
        ({"type": "scale", "scale": [2, 3]}, "xy", XY * [2, 3]),
        ({"type": "scale", "scale": [3, 2]}, "yx", XY * [2, 3]),
        ({"type": "scale", "scale": [1, 3, 2]}, "cyx", XY * [2, 3]),
        ({"type": "translation", "translation": [7, -1]}, "yx", XY + np.array([-1, 7])),
        ({"type": "rotation", "rotation": [[0, -1], [1, 0]]}, "xy", XY[:, ::-1] * [-1, 1]),
        (
            {"type": "affine", "affine": [[1, 2, 3], [4, 5, 6]]},
            "xy",
            XY @ [[1, 4], [2, 5]] + [3, 6],
        ),
        ({"type": "mapAxis", "mapAxis": {"x": "y", "y": "x"}}, "xy", XY[:, ::-1]),
    ],
)
def test_each_kind(record: dict[str, Any], axes: str, expected: Any) -> None:
    np.testing.assert_allclose(mapped(record, axes), expected)


def test_affine_of_an_image_with_other_axes_after() -> None:
    affine = [
        [1, 0, 0, 0],
        [0, 0.1, 0.5, 3],
        [0, 0.5, -0.1, 7],
    ]  # as spatialdata writes it: to c, x, y from c, y, x
    expected = XY @ [[0.5, -0.1], [0.1, 0.5]] + [3, 7]
    np.testing.assert_allclose(mapped({"type": "affine", "affine": affine}, "cyx", "cxy"), expected)


def test_sequences_go_from_left_to_right() -> None:
    steps = [
        {"type": "scale", "scale": [2, 3]},
        {"type": "translation", "translation": [1, 1]},
        {"type": "sequence", "transformations": [{"type": "scale", "scale": [10, 10]}]},
    ]
    np.testing.assert_allclose(
        mapped({"type": "sequence", "transformations": steps}), (XY * [2, 3] + 1) * 10
    )


def test_by_dimension() -> None:
    x, y = ({"input": system(axis, axis), "output": system(axis, axis)} for axis in "xy")
    parts = [{"type": "scale", "scale": [2], **x}, {"type": "translation", "translation": [5], **y}]
    np.testing.assert_allclose(
        mapped({"type": "byDimension", "transformations": parts}), XY * [2, 1] + [0, 5]
    )


def test_unit() -> None:
    record = {
        "type": "scale",
        "scale": [2, 8],
        "input": system("xy", "xy"),
        "output": system("um", "xy", "micrometer"),
    }
    found = from_records([record], "a")["um"]
    assert (found.unit, found.is_identity) == ("micrometer", False)


def nested(depth: int) -> dict[str, Any]:
    return IDENTITY if not depth else {"type": "sequence", "transformations": [nested(depth - 1)]}


@pytest.mark.parametrize(
    "record",
    [
        {"type": "displacements"},
        {"type": "scale", "scale": [2, 3, 4]},
        {"type": "scale", "scale": [0, 1]},
        {"type": "scale", "scale": [float("nan"), 1]},
        {"type": "scale"},
        {"type": "affine", "affine": [[1, 0], [0, 1]]},
        {"type": "mapAxis", "mapAxis": {"x": "y"}},
        nested(40),
    ],
)
def test_what_cannot_be_read_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="shapes 'a': a coordinate transformation cannot be read"):
        mapped(record)


def test_objects_in_memory() -> None:
    asked = []

    def to_affine_matrix(input_axes: Any, output_axes: Any) -> Any:
        asked.append((input_axes, output_axes))
        return np.array([[2, 0, 1], [0, 3, 0], [0, 0, 1]])

    found = from_objects({"global": SimpleNamespace(to_affine_matrix=to_affine_matrix)}, "a")
    np.testing.assert_allclose(found["global"].apply(XY), XY * [2, 3] + [1, 0])
    assert asked == [(("x", "y"), ("x", "y"))]
    with pytest.raises(InputError, match="cannot read the transformation"):
        from_objects({"global": "identity"}, "a")
