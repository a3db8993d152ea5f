"""Crops to vectors: a ResNet trained here, and published encoders that stay as they are (ST-Align, eqs 3 and 4)."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from terrazzo.errors import CheckpointError, ConfigError

Triple = tuple[float, float, float]


IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)


IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


RESNETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "embedding_size": 16,
        "hidden_sizes": (16, 24, 32, 48),
        "depths": (1, 1, 1, 1),
        "layer_type": "basic",
    },
    "small": {
        "embedding_size": 64,
        "hidden_sizes": (64, 128, 256, 512),
        "depths": (2, 2, 2, 2),
        "layer_type": "basic",
    },
    "resnet50": {
        "embedding_size": 64,
        "hidden_sizes": (256, 512, 1024, 2048),
        "depths": (3, 4, 6, 3),
        "layer_type": "bottleneck",
    },
}


@dataclass(frozen=True)
class SpotEncoderConfig:
    """The trained encoder of spot crops.

    Attributes
    ----------
    size
        ``"tiny"`` (for tests and laptops), ``"small"`` (ResNet-18) or ``"resnet50"`` (the paper's).
    output_dim
        Width of the vector; a linear map from the ResNet's own.
    mean, std
        Of the color channels on a scale from 0 to 1.

    Raises
    ------
    ConfigError
        An unknown size, or an impossible width.
    """

    size: Literal["tiny", "small", "resnet50"] = "resnet50"
    output_dim: int = 512
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.size not in RESNETS:
            raise ConfigError(
                f"spot encoder: size is {self.size!r}; it must be one of {', '.join(RESNETS)}."
            )
        if self.output_dim < 1:
            raise ConfigError(
                f"spot encoder: output_dim is {self.output_dim}; it must be at least 1."
            )


class _Colors(nn.Module):
    """uint8 crops to what a network takes; kept beside the weights, so that both go together."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)

    def forward(self, crops: Tensor) -> Tensor:
        """Return float ``(n, 3, H, W)`` of uint8 ``(n, H, W, 3)``; what is float already is returned as it is."""
        if crops.dtype != torch.uint8:
            return crops
        return (crops.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std


class SpotEncoder(nn.Module):
    """AE-Img: a ResNet over the crop of one spot (eq 3), from nothing."""

    def __init__(self, config: SpotEncoderConfig) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetModel

        sizes: dict[str, Any] = {
            k: list(v) if isinstance(v, tuple) else v for k, v in RESNETS[config.size].items()
        }
        self.config = config
        self.colors = _Colors(config.mean, config.std)
        self.resnet = ResNetModel(ResNetConfig(**sizes))
        self.proj = nn.Linear(sizes["hidden_sizes"][-1], config.output_dim)

    def forward(self, crops: Tensor) -> Tensor:
        """Return ``(n, output_dim)``.

        Parameters
        ----------
        crops
            uint8 ``(n, H, W, 3)``, or float ``(n, 3, H, W)`` that is standardized already.
        """
        return self.proj(self.resnet(self.colors(crops)).pooler_output.flatten(1))


class FrozenImageEncoder(nn.Module):
    """An encoder of niche crops that nothing trains (eq 4): no gradient, always in evaluation mode.

    Parameters
    ----------
    backbone
        Any vision model of ``transformers``, or one that answers like it: ``pooler_output`` or ``last_hidden_state``.
    image_size
        Side that crops are brought to.
    mean, std
        Of the color channels, as the encoder was trained with.
    readout
        ``"pooler"``: its own summary; ``"cls"``: the state of the first token; ``"mean"``: the mean over tokens or
        places. ``"auto"``: the summary if there is one, else the first token, or of a convolutional network the mean.

    Attributes
    ----------
    origin
        Where the weights come from, in words.

    Raises
    ------
    ConfigError
        An unknown readout.
    """

    origin: str = "random weights"

    def __init__(
        self,
        backbone: nn.Module,
        image_size: int = 224,
        mean: Iterable[float] = IMAGENET_MEAN,
        std: Iterable[float] = IMAGENET_STD,
        readout: Literal["auto", "pooler", "cls", "mean"] = "auto",
    ) -> None:
        super().__init__()
        if readout not in ("auto", "pooler", "cls", "mean"):
            raise ConfigError(
                f'frozen encoder: readout is {readout!r}; it must be "auto", "pooler", "cls" or "mean".'
            )
        self.image_size, self.readout = int(image_size), readout
        self.colors = _Colors(mean, std)
        self.backbone = backbone.requires_grad_(False)
        self.train(False)
        with torch.no_grad():
            dtype = next(backbone.parameters()).dtype
            self.output_dim = int(
                self._read(torch.zeros(1, 3, self.image_size, self.image_size, dtype=dtype)).shape[
                    1
                ]
            )

    @classmethod
    def from_folder(
        cls, folder: str | Path, readout: Literal["auto", "pooler", "cls", "mean"] = "auto"
    ) -> FrozenImageEncoder:
        """Load any vision model in the layout of ``transformers`` from a folder on this machine.

        ``config.json`` and safetensors; of a model of images and text (CLIP and its kin) the image part. Size and
        colors come from ``preprocessor_config.json`` where it is there. Nothing is downloaded, and no code in the
        folder is run.

        Raises
        ------
        CheckpointError
            No such folder, no safetensors, a model that is not known or sees no images, or weights that are missing.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} holds no config.json; give the folder of a transformers vision model."
            )
        if (folder / "pytorch_model.bin").is_file() and not any(folder.glob("*.safetensors")):
            raise CheckpointError(
                f"{folder} holds pytorch_model.bin and no safetensors: for UNI run `terrazzo convert uni` first; other "
                "models must be saved as safetensors."
            )
        backbone = _load(folder)
        vision = backbone.config
        sheet = folder / "preprocessor_config.json"
        try:
            said = json.loads(sheet.read_text(encoding="utf-8")) if sheet.is_file() else {}
            size = _side(said) or _side({"size": getattr(vision, "image_size", None)}) or 224
            colors = said.get("image_mean", IMAGENET_MEAN), said.get("image_std", IMAGENET_STD)
            made = cls(backbone, size, *colors, readout=readout)
            made.origin = folder.resolve().name
            return made
        except ConfigError:
            raise
        except (OSError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{folder}: this model gives no vector of a crop ({error})."
            ) from error

    @classmethod
    def small(
        cls,
        seed: int = 0,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 192,
        num_layers: int = 4,
    ) -> FrozenImageEncoder:
        """Make a small vision transformer with random weights, for where no published encoder is at hand.

        Its vector is the mean over patches: what a random network says of a crop is a summary of colors and edges,
        no more.
        """
        from transformers import ViTConfig, ViTModel

        config = ViTConfig(
            hidden_size=width,
            num_hidden_layers=num_layers,
            num_attention_heads=max(1, width // 64),
            intermediate_size=4 * width,
            image_size=image_size,
            patch_size=patch_size,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = ViTModel(config, add_pooling_layer=False)
        return cls(backbone, image_size, readout="mean")

    @classmethod
    def from_description(cls, said: dict[str, Any]) -> FrozenImageEncoder:
        """Make an encoder with random weights from what :meth:`description` said of another.

        Raises
        ------
        ConfigError
            It describes no vision model that is known.
        """
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_MAPPING

        try:
            config = AutoConfig.for_model(**said["model"])
            known: Any = MODEL_MAPPING[type(config)]
            plain = (
                not said["pooler"]
                and "add_pooling_layer" in inspect.signature(known.__init__).parameters
            )
            model = known(config, add_pooling_layer=False) if plain else known(config)
            backbone = getattr(model, "vision_model", model)
            return cls(backbone, said["image_size"], said["mean"], said["std"], said["readout"])
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"this describes no frozen image encoder ({type(error).__name__}: {error})."
            ) from error

    def description(self) -> dict[str, Any]:
        """Return all but the weights, in plain values: what :meth:`from_description` takes."""
        return {
            "model": json.loads(_settings(self.backbone)),
            "pooler": any("pooler" in name for name in self.backbone.state_dict()),
            "image_size": self.image_size,
            "mean": self.colors.mean.flatten().tolist(),
            "std": self.colors.std.flatten().tolist(),
            "readout": self.readout,
        }

    def train(self, mode: bool = True) -> FrozenImageEncoder:
        """Stay in evaluation mode: dropout and running means of what is frozen never move."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, crops: Tensor) -> Tensor:
        """Return float32 ``(n, output_dim)``, without gradient.

        Parameters
        ----------
        crops
            uint8 ``(n, H, W, 3)``, or float ``(n, 3, H, W)`` that is standardized already.
        """
        return self._read(self.colors(crops).to(next(self.backbone.parameters()).dtype)).float()

    def features(
        self, batches: Iterable[NDArray[np.uint8]], advance: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Encode batches of crops, uint8 ``(n, H, W, 3)``, as :meth:`terrazzo.images.Crops.batches` gives them.

        Returns
        -------
        float32 ``(sum of n, output_dim)``.
        """
        device, out = next(self.backbone.parameters()).device, []
        for batch in batches:
            out.append(self(torch.from_numpy(np.ascontiguousarray(batch)).to(device)).cpu().numpy())
            if advance is not None:
                advance(len(batch))
        return np.concatenate(out) if out else np.zeros((0, self.output_dim), dtype=np.float32)

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of weights, size, colors and readout: what vectors depend on beside the crops."""
        digest = hashlib.sha256(
            f"terrazzo-image-encoder-1 {self.image_size} {self.readout}".encode()
        )
        own = {
            "colors.mean": self.colors.mean,
            "colors.std": self.colors.std,
            **self.backbone.state_dict(),
        }
        digest.update(_settings(self.backbone).encode())
        for name, tensor in sorted(own.items()):
            held = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {held.dtype} {tuple(held.shape)}".encode())
            digest.update(held.view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _read(self, pixels: Tensor) -> Tensor:
        side = (self.image_size, self.image_size)
        if pixels.shape[2:] != side:
            pixels = F.interpolate(
                pixels, side, mode="bilinear", antialias=True, align_corners=False
            )
        out = self.backbone(pixel_values=pixels)
        summary, states = getattr(out, "pooler_output", None), out.last_hidden_state
        if self.readout == "pooler" and summary is None:
            raise ConfigError(
                'frozen encoder: this model has no summary; use readout="cls" or "mean".'
            )
        if summary is not None and self.readout in ("auto", "pooler"):
            return summary.flatten(1)
        if states.ndim == 4:
            return states.mean(dim=(2, 3))
        return states.mean(dim=1) if self.readout == "mean" else states[:, 0]


def _load(folder: Path) -> Any:
    """Load the image part of a model; a summary whose weights are not in the folder is left out."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        known: Any = MODEL_MAPPING[type(config)]
        options: dict[str, Any] = {
            "use_safetensors": True,
            "local_files_only": True,
            "trust_remote_code": False,
        }
        if "add_pooling_layer" in inspect.signature(known.__init__).parameters and not _has_pooler(
            folder
        ):
            options["add_pooling_layer"] = False
        model, told = AutoModel.from_pretrained(
            folder, config=config, output_loading_info=True, **options
        )
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        ImportError,
        SafetensorError,
    ) as error:
        raise CheckpointError(
            f"{folder} could not be loaded as a transformers vision model from safetensors ({error})."
        ) from error
    if told["missing_keys"] or told.get("mismatched_keys"):
        wrong = sorted(map(str, [*told["missing_keys"], *told.get("mismatched_keys", [])]))
        raise CheckpointError(
            f"{folder}: {len(wrong)} weights are missing or of another size, the first {wrong[0]!r}."
        )
    found = getattr(model, "vision_model", model)
    if "pixel_values" not in inspect.signature(found.forward).parameters:
        raise CheckpointError(
            f"{folder} holds a {config.model_type!r} model, which sees no images."
        )
    return found


def _has_pooler(folder: Path) -> bool:
    """Say whether the weights of a summary are in the folder (without them transformers would draw them)."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as held:
            if any("pooler" in name for name in held.keys()):  # noqa: SIM118 - no mapping, it only has keys()
                return True
    return False


def _side(said: dict[str, Any]) -> int | None:
    """Side of the crops that an encoder takes, from one of the ways in which this is written."""
    for name in ("crop_size", "size"):
        value = said.get(name)
        if isinstance(value, dict):
            value = value.get("height") or value.get("shortest_edge")
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _settings(backbone: nn.Module) -> str:
    """Return what a model is beside its weights, as text that says nothing of paths and versions."""
    config: Any = getattr(backbone, "config", None)
    said = config.to_dict() if hasattr(config, "to_dict") else {}
    left_out = (
        "_name_or_path",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "_attn_implementation_autoset",
    )
    return json.dumps(
        {k: v for k, v in said.items() if k not in left_out}, sort_keys=True, default=str
    )
