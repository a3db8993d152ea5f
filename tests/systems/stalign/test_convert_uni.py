"""UNI's layout to transformers: the same sum as a plain vision transformer, and damaged downloads refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from terrazzo.cli import main
from terrazzo.errors import CheckpointError, OutputError
from terrazzo.systems.stalign import convert as room
from terrazzo.systems.stalign.convert import UNI, ViTSizes, convert_uni
from terrazzo.systems.stalign.image_encoder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrozenImageEncoder,
)

SMALL = ViTSizes(width=48, layers=3, heads=3, patch=8, side=32)


class Payload:
    """Unpickling it would make a folder: harmless, and seen."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.target),))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Loud random weights in timm's layout; scales of layers far from 1, so that they show."""
    g = torch.Generator().manual_seed(0)
    out = {}
    for name, shape in SMALL.shapes().items():
        noise = torch.randn(shape, generator=g)
        if "gamma" in name:
            out[name] = 0.5 + 0.3 * noise
        elif "norm" in name:
            out[name] = noise * 0.2 + (1.0 if name.endswith("weight") else 0.0)
        else:
            out[name] = noise / math.prod(shape[1:]) ** 0.5 if len(shape) in (2, 4) else noise
    return out


@pytest.fixture
def published(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    folder = tmp_path / "uni"
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(
        '{"architecture": "vit_large_patch16_224"}'
    )  # timm's, beside the weights
    return folder


def standardized(crops: np.ndarray) -> torch.Tensor:
    """Crops as a network takes them: float32 (n, 3, H, W), by the mean and deviation of each channel."""
    values = (crops / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return torch.from_numpy(np.moveaxis(values, -1, 1).astype(np.float32))


def plainly(state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """What timm's vision transformer does with these tensors: pre-norm, LayerScale, norm, first token."""
    f, s = torch.nn.functional, SMALL

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return f.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return f.layer_norm(x, (s.width,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    n, across = len(pixels), s.side // s.patch
    pieces = (
        pixels.view(n, 3, across, s.patch, across, s.patch)
        .permute(0, 2, 4, 1, 3, 5)
        .flatten(3)
        .flatten(1, 2)
    )
    kernel = state["patch_embed.proj.weight"].flatten(1)
    x = pieces @ kernel.T + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"].expand(n, -1, -1), x], dim=1) + state["pos_embed"]
    for i in range(s.layers):
        b = f"blocks.{i}"
        qkv = linear(norm(x, f"{b}.norm1"), f"{b}.attn.qkv")
        qkv = qkv.reshape(n, -1, 3, s.heads, s.width // s.heads).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(-1, -2) / (s.width // s.heads) ** 0.5
        mixed = (scores.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(n, -1, s.width)
        x = x + state[f"{b}.ls1.gamma"] * linear(mixed, f"{b}.attn.proj")
        inner = linear(norm(x, f"{b}.norm2"), f"{b}.mlp.fc1")
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        x = x + state[f"{b}.ls2.gamma"] * linear(inner, f"{b}.mlp.fc2")
    return norm(x, "norm")[:, 0]


def test_the_same_as_a_plain_vision_transformer(
    published: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    encoder = FrozenImageEncoder.from_folder(convert_uni(published, tmp_path / "out", sizes=SMALL))
    assert (encoder.image_size, encoder.output_dim) == (32, 48)
    crops = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    expected = plainly(state, standardized(crops))
    torch.testing.assert_close(encoder(torch.from_numpy(crops)), expected, rtol=1e-4, atol=2e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.1  # crops differ
    sheet = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (sheet["image_mean"], sheet["image_std"]) == (
        [0.485, 0.456, 0.406],
        [0.229, 0.224, 0.225],
    )


def test_every_tensor_matters(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    crops = torch.from_numpy(
        np.random.default_rng(1).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    )
    pixels = standardized(crops.numpy())
    before = plainly(state, pixels)
    for name in (
        "pos_embed",
        "cls_token",
        "blocks.2.ls2.gamma",
        "blocks.1.attn.qkv.bias",
        "norm.bias",
    ):
        folder = tmp_path / name
        folder.mkdir()
        changed = state | {
            name: state[name]
            + torch.linspace(-1, 1, 48).repeat(state[name].numel() // 48).view_as(state[name])
        }
        torch.save(changed, folder / "pytorch_model.bin")
        encoder = FrozenImageEncoder.from_folder(convert_uni(folder, folder / "out", sizes=SMALL))
        torch.testing.assert_close(encoder(crops), plainly(changed, pixels), rtol=1e-4, atol=2e-5)
        assert (encoder(crops) - before).abs().max() > 1e-3, name


def test_unis_own_sizes_are_those_of_the_architecture() -> None:
    from transformers import Dinov2Config, Dinov2Model

    shapes = UNI.shapes()
    assert (
        sum(math.prod(shape) for shape in shapes.values()) == 303_350_784
    )  # ViT-L/16 with LayerScale, no head
    assert (shapes["pos_embed"], shapes["blocks.23.mlp.fc1.weight"]) == (
        (1, 197, 1024),
        (4096, 1024),
    )
    with torch.device("meta"):
        model = Dinov2Model(
            Dinov2Config(
                hidden_size=1024,
                num_hidden_layers=24,
                num_attention_heads=16,
                patch_size=16,
                image_size=224,
                use_mask_token=False,
            )
        )
    assert sum(p.numel() for p in model.parameters()) == 303_350_784


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_missing_or_truncated_file(published: Path, tmp_path: Path, share: float) -> None:
    path = published / "pytorch_model.bin"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        convert_uni(published, tmp_path / "out", sizes=SMALL)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        convert_uni(published, tmp_path / "out", sizes=SMALL)
    assert not (tmp_path / "out").exists()


def test_code_in_the_weights_is_not_run(
    published: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(state | {"extra": Payload(tmp_path / "ran")}, published / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Nothing was run"):
        convert_uni(published, tmp_path / "out", sizes=SMALL)
    assert not (tmp_path / "ran").exists()


def test_other_models_are_refused(
    published: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    def refused(changed: dict[str, torch.Tensor], said: str) -> None:
        torch.save(changed, published / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=said):
            convert_uni(published, tmp_path / "out", sizes=SMALL)

    refused(state | {"reg_token": torch.zeros(1, 8, 48)}, "UNI2-h")
    refused({k: v for k, v in state.items() if "ls1" not in k}, r"lacks: blocks\.0\.ls1\.gamma")
    refused(state | {"head.weight": torch.zeros(2, 48)}, "head")
    refused(
        state | {"pos_embed": torch.zeros(1, 26, 48)}, r"\(1, 26, 48\) instead of \(1, 17, 48\)"
    )
    with pytest.raises(CheckpointError, match="belongs to another model"):
        convert_uni(published, tmp_path / "out")  # not UNI's sizes
    assert not (tmp_path / "out").exists()


def test_only_its_own_folder_is_replaced(published: Path, tmp_path: Path) -> None:
    out = convert_uni(published, tmp_path / "out", sizes=SMALL)
    with pytest.raises(OutputError, match="--overwrite"):
        convert_uni(published, out, sizes=SMALL)
    convert_uni(published, out, sizes=SMALL, overwrite=True)
    with pytest.raises(OutputError, match="another folder"):
        convert_uni(published, published, sizes=SMALL, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "uni"]


def test_on_the_command_line(
    published: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["convert", "uni", str(published), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "another model" in said
    monkeypatch.setattr(room, "UNI", SMALL)
    assert main(words) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    assert FrozenImageEncoder.from_folder(tmp_path / "out").output_dim == 48
    with pytest.raises(CheckpointError, match="terrazzo convert uni"):
        FrozenImageEncoder.from_folder(published)
