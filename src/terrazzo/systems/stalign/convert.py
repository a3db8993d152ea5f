"""Converter of UNI's published weights (timm's layout of a ViT) to a folder that transformers can load."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from terrazzo._version import __version__
from terrazzo.errors import CheckpointError
from terrazzo.models import checkpoint as ckpt
from terrazzo.models.published import need, read_pickled_tensors
from terrazzo.systems.stalign.image_encoder import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["UNI", "ViTSizes", "convert_uni", "save_uni"]

PREPROCESSOR = "preprocessor_config.json"

MARK = "converted_by"

NAMES = {  # timm -> transformers' DINOv2, a vision transformer with LayerScale
    "norm1": "norm1",
    "attn.proj": "attention.output.dense",
    "ls1": "layer_scale1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls2": "layer_scale2",
}

VECTORS = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma")


@dataclass(frozen=True)
class ViTSizes:
    """Sizes of a vision transformer; the defaults are UNI's (ViT-L/16, 224 pixels)."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    patch: int = 16
    side: int = 224
    mlp_ratio: int = 4

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of timm's layout, by name."""
        width = self.width
        hidden = width * self.mlp_ratio
        n_patches = (self.side // self.patch) ** 2
        shapes: dict[str, tuple[int, ...]] = {
            "cls_token": (1, 1, width),
            "pos_embed": (1, n_patches + 1, width),
            "patch_embed.proj.weight": (width, 3, self.patch, self.patch),
            "patch_embed.proj.bias": (width,),
            "norm.weight": (width,),
            "norm.bias": (width,),
        }
        linear = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (hidden, width),
            "mlp.fc2": (width, hidden),
        }
        for number in range(self.layers):
            block = f"blocks.{number}"
            for name, (rows, columns) in linear.items():
                shapes[f"{block}.{name}.weight"] = (rows, columns)
                shapes[f"{block}.{name}.bias"] = (rows,)
            for name in VECTORS:
                shapes[f"{block}.{name}"] = (width,)
        return shapes


UNI = ViTSizes()


def convert_uni(
    published: str | Path,
    out: str | Path,
    *,
    sizes: ViTSizes | None = None,
    overwrite: bool = False,
) -> Path:
    """Write UNI's published weights as a transformers folder, all of it or nothing.

    The folder is that of a DINOv2 model, which computes the same: a pre-norm vision transformer with LayerScale. Load
    it with :meth:`terrazzo.systems.stalign.image_encoder.FrozenImageEncoder.from_folder`; the vector is the normalized
    first token.

    Parameters
    ----------
    published
        Folder with ``pytorch_model.bin``.
    out
        Folder to write: ``config.json``, ``model.safetensors``, ``preprocessor_config.json``.
    sizes
        None: UNI's; others for another vision transformer with LayerScale in the same layout.
    overwrite
        Replace a folder that this function wrote.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, tries to run code, or is of another model (UNI2-h among them).
    OutputError
        The folder exists already, or cannot be written.
    """
    from safetensors.torch import save_file
    from transformers import Dinov2Config

    sizes = sizes or UNI
    file = Path(published) / "pytorch_model.bin"
    need(file)
    state = read_pickled_tensors(file)
    if "reg_token" in state:
        raise CheckpointError(
            f"{file} has register tokens, as UNI2-h has; only UNI (ViT-L/16) can be converted."
        )
    expected = {}
    for name, shape in sizes.shapes().items():
        expected[name] = torch.empty(shape, device="meta")
    ckpt.check_tensors(expected, state, str(file))
    config = Dinov2Config(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        mlp_ratio=sizes.mlp_ratio,
        image_size=sizes.side,
        patch_size=sizes.patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        qkv_bias=True,
        layerscale_value=1e-5,
        architectures=["Dinov2Model"],
    )
    side = {"height": sizes.side, "width": sizes.side}
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": side,
        "do_normalize": True,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        MARK: f"terrazzo {__version__}, convert uni",
    }
    with ckpt.whole_folder(out, overwrite=overwrite, is_replaceable=_is_converted) as draft:
        save_file(_renamed(state), str(draft / ckpt.WEIGHTS), metadata={"format": "pt"})
        config.save_pretrained(draft)
        text = json.dumps(preprocessor, indent=2)
        (draft / PREPROCESSOR).write_text(f"{text}\n", encoding="utf-8")
    return Path(out)


def _renamed(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give timm's tensors the names of DINOv2's checkpoints; queries, keys and values are split."""
    width = published["cls_token"].shape[-1]
    renamed = {
        "embeddings.cls_token": published["cls_token"],
        "embeddings.mask_token": torch.zeros(1, width),  # of its training; never read
        "embeddings.position_embeddings": published["pos_embed"],
    }
    for name, tensor in published.items():
        stem, _, kind = name.rpartition(".")
        if stem == "patch_embed.proj":
            renamed[f"embeddings.patch_embeddings.projection.{kind}"] = tensor
        elif stem == "norm":
            renamed[f"layernorm.{kind}"] = tensor
        elif stem:
            renamed.update(_renamed_block(stem, kind, tensor))
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def _renamed_block(stem: str, kind: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return the tensors of DINOv2 for one tensor of a block, ``blocks.<number>.<part>``."""
    _, number, part = stem.split(".", 2)
    layer = f"encoder.layer.{number}"
    if part == "attn.qkv":
        attention = f"{layer}.attention.attention"
        query, key, value = tensor.chunk(3)
        return {
            f"{attention}.query.{kind}": query.clone(),
            f"{attention}.key.{kind}": key.clone(),
            f"{attention}.value.{kind}": value.clone(),
        }
    if kind == "gamma":
        kind = "lambda1"
    return {f"{layer}.{NAMES[part]}.{kind}": tensor}


def _is_converted(folder: Path) -> bool:
    """Return True if a folder was written by this converter, with nothing added to it."""
    if not ckpt.has_only(folder, (ckpt.CONFIG, ckpt.WEIGHTS, PREPROCESSOR)):
        return False
    try:
        return MARK in ckpt.read_json(folder / PREPROCESSOR)
    except CheckpointError:
        return False


def save_uni(
    published: Path, out: Path, *, gene_dictionaries: Path | None, overwrite: bool
) -> Path:
    """Convert UNI's published weights to a folder; see :func:`terrazzo.convert`. It reads no genes."""
    return convert_uni(published, out, overwrite=overwrite)
