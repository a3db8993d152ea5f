"""Checkpoint folders with damage: settings, tensors, vocabulary, links."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

from hostile_files import damage_bytes

VALUES: list[Any] = [
    0,
    -1,
    10**18,
    10**10,
    10**400,
    1e308,
    0.5,
    5.0,
    True,
    None,
    "",
    "x" * 5000,
    "../../x",
    [],
    {},
    [1],
    "null",
]
VALUES += [200_000, 2**31, ["stofm"], {"a": {}}, "NaN"]
REFUSED = (OSError, ValueError, TypeError, KeyError, RecursionError, struct.error)
TYPES = ["F16", "I64", "BOOL", "F64", "U8", "C64", "F8_E4M3", "x"]


def damage_checkpoint(folder: Path, rng: random.Random) -> str:
    """Damage a checkpoint in one place or two; return what was done."""
    done = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        change = rng.choice([_settings, _settings, _settings, _settings, _header, _weights, _bytes])
        try:
            done.append(change(folder, rng))
        except REFUSED:
            continue  # damaged by the change before
    return "; ".join(done)


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value of nested dicts and lists."""
    places = [place] if place else []
    if isinstance(value, dict):
        for key, inner in value.items():
            places += _places(inner, (*place, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value[:3]):
            places += _places(inner, (*place, i))
    return places


def _settings(folder: Path, rng: random.Random) -> str:
    """Change, delete or add a setting."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    place = rng.choice(_places(content))
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    how = rng.choice(["change", "change", "change", "delete", "add"])
    value = rng.choice(VALUES)
    if how == "change":
        holder[place[-1]] = value
    elif how == "delete":
        del holder[place[-1]]
    elif isinstance(holder, dict):
        holder[rng.choice(["x", "auto_map", "attn_implementation", "n" * 3000])] = value
    text = json.dumps(content)
    if rng.random() < 0.1:
        text = '{"a":' * 5000 + text + "}" * 5000
    path.write_text(text)
    return f"{how} {place}: {str(value)[:30]}"


def _header(folder: Path, rng: random.Random) -> str:
    """Change what the file of weights says of a tensor."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    how = rng.choice(["shape", "dtype", "name", "offsets", "gone", "size"])
    if how == "shape":
        header[name]["shape"] = rng.choice([[2**40], [], [0], [-1], header[name]["shape"][::-1]])
    elif how == "dtype":
        header[name]["dtype"] = rng.choice(TYPES)
    elif how == "name":
        header["y" * rng.choice([1, 3000])] = header.pop(name)
    elif how == "offsets":
        header[name]["data_offsets"] = rng.choice([[0, 2**60], [5, 1], [0, 0]])
    elif how == "gone":
        del header[name]
    text = json.dumps(header).encode()
    stated = rng.choice([0, 2**63, 2**30]) if how == "size" else len(text)
    path.write_bytes(struct.pack("<Q", stated) + text + content[8 + size :])
    return f"{how} of {name}"


def _weights(folder: Path, rng: random.Random) -> str:
    """Change weights, or cut them."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    (size,) = struct.unpack("<Q", content[:8])
    at = 8 + size + 4 * rng.randrange((len(content) - 8 - size) // 4)
    how = rng.choice(["nan", "inf", "cut"])
    if how == "cut":
        content = content[:at]
    else:
        content[at : at + 4] = struct.pack("<f", float(how))
    path.write_bytes(bytes(content))
    return how


def _bytes(folder: Path, rng: random.Random) -> str:
    path = rng.choice([folder / "vocab.parquet", folder / "config.json", folder / "README.md"])
    return f"{path.name}: {damage_bytes(path, rng)}"
