"""Strict configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from terrazzo.config import from_dict, to_dict
from terrazzo.errors import ConfigError
from terrazzo.systems.stofm import config as stofm_config


@dataclass(frozen=True)
class Inner:
    size: int = 3
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1")


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"] = "a"
    on: bool = False
    maybe: int | None = None
    inner: Inner = field(default_factory=Inner)
    extra: dict = field(default_factory=dict)
    pair: tuple[int, float] = (1, 2.0)


def test_round_trip_through_json() -> None:
    config = Outer("x", "b", True, 4, Inner(7, 0.25), {"k": 1}, (3, 0.5))
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config
    for name in ("tiny", "small", "paper"):
        preset = stofm_config.preset(name)
        assert (
            from_dict(stofm_config.SToFMConfig, json.loads(json.dumps(to_dict(preset)))) == preset
        )


def test_defaults_and_conversions() -> None:
    assert from_dict(Outer, {"name": "x"}) == Outer("x")
    found = from_dict(Outer, {"name": "x", "maybe": None, "inner": {"rate": 2}})
    assert found.inner.rate == 2.0
    assert isinstance(found.inner.rate, float)
    assert found.maybe is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"name": "x", "knd": "a"}, r"config has an unknown key 'knd'\. Did you mean 'kind'\?"),
        ({"name": "x", "inner": {"sizes": 3}}, r"config\.inner.*Did you mean 'size'"),
        ({"name": "x", "zzzzzz": 1}, "Valid keys: name, kind"),
        ({"kind": "a"}, "lacks name"),
        ({"name": "x", "kind": "c"}, r"config\.kind is 'c'; it must be one of 'a', 'b'"),
        ({"name": 3}, r"config\.name is 3; it must be of type str"),
        ({"name": "x", "on": 1}, "type bool"),
        ({"name": "x", "maybe": True}, "type int"),
        ({"name": "x", "maybe": 1.5}, "type int"),
        ({"name": "x", "inner": {"rate": True}}, "type float"),
        ({"name": "x", "inner": {"rate": "fast"}}, "type float"),
        ({"name": "x", "inner": 3}, r"config\.inner must be a mapping"),
        ({"name": "x", "extra": [1]}, r"config\.extra must be a mapping"),
        ({"name": "x", "inner": {"size": 0}}, "at least 1"),
        ({"name": "x", "pair": [1]}, r"config\.pair must be a list of 2"),
        ({"name": "x", "pair": [1, "a"]}, r"config\.pair\[1\] is 'a'"),
        ([1, 2], "must be a mapping of settings, not list"),
        (None, "not NoneType"),
    ],
)
def test_what_is_wrong_is_said(data: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        from_dict(Outer, data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"subslice_size": 0},
        {"n_neighbors": 0},
        {"cluster_neighbors": 1},
        {"max_clusters": 0},
        {"halo": -0.1},
        {"length_scale": 0.0},
        {"leiden_resolution": 0.0},
        {"alpha": 1.5},
        {"length_scale": float("nan")},
    ],
    ids=str,
)
def test_impossible_sub_slices_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        from_dict(stofm_config.SToFMConfig, {"subslices": wrong})
