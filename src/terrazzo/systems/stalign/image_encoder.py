"""Encoders of crops: a trained ResNet, and frozen published encoders (ST-Align, eqs 3 and 4)."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from terrazzo.arrays import Vectors
from terrazzo.config import LAYERS, TOKENS
from terrazzo.errors import CheckpointError, ConfigError, TerrazzoWarning, shortened
from terrazzo.parsing import parse_json, read_object
from terrazzo.systems.stalign.efficientnet import (
    DEFAULT,
    INSTALL,
    LITE,
    LITE_COLORS,
    LiteBackbone,
    is_installed,
    load_backbone,
)

__all__ = [
    "ENCODERS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "RANDOM",
    "RESNETS",
    "FrozenImageEncoder",
    "Readout",
    "SpotEncoder",
    "SpotEncoderConfig",
]

Triple = tuple[float, float, float]

Readout = Literal["auto", "pooler", "cls", "mean"]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)

IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

RANDOM = "random"  # name of a small vision transformer with random weights

ENCODERS = (*LITE, RANDOM)  # frozen encoders that have a name

# settings of a transformers model that name paths and versions, and do not change its output
NOT_HASHED = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "_attn_implementation_autoset",
)

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


_LARGEST_SIDE = 4096  # pixels
# Settings of transformers that name code which is loaded from elsewhere
_CODE = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config")


class _Colors(nn.Module):
    """Standardize the colors of uint8 crops; a module, so that it moves with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        self.register_buffer("mean", _by_channel(mean), persistent=False)
        self.register_buffer("std", _by_channel(std), persistent=False)

    def forward(self, crops: Tensor) -> Tensor:
        """Return float ``(n, 3, H, W)`` of uint8 ``(n, H, W, 3)``; float crops are returned as they are."""
        if crops.dtype != torch.uint8:
            return crops
        pixels = crops.permute(0, 3, 1, 2).float() / 255
        return (pixels - self.mean) / self.std


def _by_channel(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values)).view(1, 3, 1, 1)


class SpotEncoder(nn.Module):
    """AE-Img: a ResNet over the crop of one spot (eq 3), trained from random weights."""

    def __init__(self, config: SpotEncoderConfig) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetModel

        sizes = dict(RESNETS[config.size])
        widths = list(sizes.pop("hidden_sizes"))
        depths = list(sizes.pop("depths"))
        self.config = config
        self.colors = _Colors(config.mean, config.std)
        self.resnet = ResNetModel(ResNetConfig(hidden_sizes=widths, depths=depths, **sizes))
        self.proj = nn.Linear(widths[-1], config.output_dim)

    def forward(self, crops: Tensor) -> Tensor:
        """Return ``(n, output_dim)``.

        Parameters
        ----------
        crops
            uint8 ``(n, H, W, 3)``, or float ``(n, 3, H, W)`` that is standardized already.
        """
        pixels = self.colors(crops)
        pooled = self.resnet(pixels).pooler_output
        return self.proj(pooled.flatten(1))


class FrozenImageEncoder(nn.Module):
    """Frozen encoder of niche crops (eq 4): no gradient, always in evaluation mode.

    Parameters
    ----------
    backbone
        Any vision model of ``transformers``, or one with the same output: ``pooler_output`` or ``last_hidden_state``.
    image_size
        Side that crops are resized to.
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
        readout: Readout = "auto",
    ) -> None:
        super().__init__()
        if readout not in ("auto", "pooler", "cls", "mean"):
            raise ConfigError(
                f'frozen encoder: readout is {readout!r}; it must be "auto", "pooler", "cls" or "mean".'
            )
        self.image_size = int(image_size)
        self.readout = readout
        self.colors = _Colors(mean, std)
        self.backbone = backbone.requires_grad_(False)
        self.train(False)
        with torch.no_grad():
            dtype = next(backbone.parameters()).dtype
            blank = torch.zeros(1, 3, self.image_size, self.image_size, dtype=dtype)
            self.output_dim = int(self._read(blank).shape[1])

    @classmethod
    def from_folder(cls, folder: str | Path, readout: Readout = "auto") -> FrozenImageEncoder:
        """Load any vision model in the layout of ``transformers`` from a local folder.

        ``config.json`` and safetensors; of a model of images and text (such as CLIP) the image part. Size and colors
        come from ``preprocessor_config.json``, if the folder has one. Nothing is downloaded, and no code in the folder
        is run.

        Raises
        ------
        CheckpointError
            No such folder, no safetensors, a model that is not known or sees no images, or weights that are missing.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} holds no config.json; pass the folder of a transformers vision model."
            )
        if (folder / "pytorch_model.bin").is_file() and not any(folder.glob("*.safetensors")):
            raise CheckpointError(
                f"{folder} holds pytorch_model.bin and no safetensors: for UNI run `terrazzo convert uni` first; other "
                "models must be saved as safetensors."
            )
        backbone = _load(folder)
        of_model = {"size": getattr(backbone.config, "image_size", None)}
        try:
            settings = _preprocessor(folder)
            encoder = cls(
                backbone,
                _side(settings) or _side(of_model) or 224,
                settings.get("image_mean", IMAGENET_MEAN),
                settings.get("image_std", IMAGENET_STD),
                readout=readout,
            )
            encoder.origin = folder.resolve().name
            return encoder
        except ConfigError:
            raise
        except (OSError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{folder}: this model gives no vector of a crop ({error})."
            ) from error

    @classmethod
    def from_source(
        cls, source: FrozenImageEncoder | str | Path | None, **sizes: int
    ) -> FrozenImageEncoder:
        """Return an encoder by its name or folder.

        Parameters
        ----------
        source
            ``"efficientnet-lite0"``, ``"efficientnet-lite1"`` or ``"efficientnet-lite2"``, with ImageNet weights from
            the packages of the extra ``histology``; ``"random"``, a small vision transformer with random weights; or
            a folder for :meth:`from_folder`. An encoder is returned as it is. None: ``"efficientnet-lite0"``.
        **sizes
            Of ``"random"``; see :meth:`small`.

        Raises
        ------
        ConfigError
            The extra is not installed.
        CheckpointError
            Neither a name nor the folder of a vision model; weights with another checksum.

        Warns
        -----
        TerrazzoWarning
            With ``"random"``: such vectors say little about tissue.
        """
        if isinstance(source, FrozenImageEncoder):
            return source
        if source is None and not is_installed():
            raise ConfigError(
                f"no image encoder is installed: {INSTALL} for {DEFAULT}, or pass image_encoder= (the folder of a "
                f'transformers vision model, or "{RANDOM}").'
            )
        name = str(source or DEFAULT)
        if name in LITE:
            mean, std = LITE_COLORS
            encoder = cls(load_backbone(name), LITE[name].image_size, [mean] * 3, [std] * 3)
            encoder.origin = name
            return encoder
        if name == RANDOM:
            warnings.warn(
                "the frozen image encoder is a small vision transformer with random weights, which says little about "
                f"tissue; {INSTALL} for {DEFAULT}.",
                TerrazzoWarning,
                stacklevel=3,
            )
            return cls.small(**sizes)
        return cls.from_folder(name)

    @classmethod
    def small(
        cls,
        seed: int = 0,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 192,
        num_layers: int = 4,
    ) -> FrozenImageEncoder:
        """Return a small vision transformer with random weights, for use without a published encoder.

        Its vector is the mean over patches, which of a random network is a summary of colors and edges.
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
    def from_description(cls, description: dict[str, Any]) -> FrozenImageEncoder:
        """Return an encoder with random weights from the :meth:`description` of another.

        Raises
        ------
        ConfigError
            It describes no vision model that is known; EfficientNet-Lite, and the extra ``histology`` is not installed.
        """
        _check_description(description)
        try:
            return cls(
                _described(description),
                description["image_size"],
                description["mean"],
                description["std"],
                description["readout"],
            )
        except ConfigError:
            raise
        except Exception as error:  # settings of transformers raise almost anything
            reason = shortened(error, 200, quoted=False)
            raise ConfigError(
                f"this describes no frozen image encoder ({type(error).__name__}: {reason})."
            ) from error

    def description(self) -> dict[str, Any]:
        """Return all but the weights, in plain values, for :meth:`from_description`."""
        return {
            "model": parse_json(_settings(self.backbone), "the model's settings", finite=False),
            "pooler": any("pooler" in name for name in self.backbone.state_dict()),
            "image_size": self.image_size,
            "mean": self.colors.mean.flatten().tolist(),
            "std": self.colors.std.flatten().tolist(),
            "readout": self.readout,
        }

    def train(self, mode: bool = True) -> FrozenImageEncoder:
        """Stay in evaluation mode: a frozen encoder has no dropout and keeps its running means."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, crops: Tensor) -> Tensor:
        """Return float32 ``(n, output_dim)``, without gradient.

        Parameters
        ----------
        crops
            uint8 ``(n, H, W, 3)``, or float ``(n, 3, H, W)`` that is standardized already.
        """
        pixels = self.colors(crops).to(self._weight().dtype)
        return self._read(pixels).float()

    def _weight(self) -> Tensor:
        """Return a weight, for its type and device."""
        return next(self.backbone.parameters())

    def features(
        self, batches: Iterable[NDArray[np.uint8]], advance: Callable[[int], None] | None = None
    ) -> Vectors:
        """Encode batches of crops, uint8 ``(n, H, W, 3)``, as :meth:`terrazzo.images.Crops.batches` yields them.

        Returns
        -------
        float32 ``(sum of n, output_dim)``.
        """
        device = self._weight().device
        vectors = []
        for batch in batches:
            crops = torch.from_numpy(np.ascontiguousarray(batch))
            vectors.append(self(crops.to(device)).cpu().numpy())
            if advance is not None:
                advance(len(batch))
        if not vectors:
            return np.zeros((0, self.output_dim), dtype=np.float32)
        return np.concatenate(vectors)

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of weights, size, colors and readout: all that vectors depend on but the crops."""
        head = f"terrazzo-image-encoder-1 {self.image_size} {self.readout}"
        digest = hashlib.sha256(head.encode())
        tensors = dict(self.backbone.state_dict())
        tensors["colors.mean"] = self.colors.mean
        tensors["colors.std"] = self.colors.std
        digest.update(_settings(self.backbone).encode())
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            shape = tuple(tensor.shape)
            digest.update(f"{name} {tensor.dtype} {shape}".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _read(self, pixels: Tensor) -> Tensor:
        """Return the vector of each crop, ``(n, output_dim)``."""
        size = (self.image_size, self.image_size)
        if pixels.shape[2:] != size:
            pixels = F.interpolate(
                pixels, size, mode="bilinear", antialias=True, align_corners=False
            )
        output = self.backbone(pixel_values=pixels)
        summary = getattr(output, "pooler_output", None)
        states = output.last_hidden_state
        if self.readout == "pooler" and summary is None:
            raise ConfigError(
                'frozen encoder: this model has no summary; use readout="cls" or "mean".'
            )
        if summary is not None and self.readout in ("auto", "pooler"):
            return summary.flatten(1)
        if states.ndim == 4:
            return states.mean(dim=(2, 3))
        if self.readout == "mean":
            return states.mean(dim=1)
        return states[:, 0]


def _check_description(description: dict[str, Any]) -> None:
    """Refuse a description of a network that would be built without end, or that names code from elsewhere.

    Raises
    ------
    ConfigError
        Names the setting.
    """
    pending: list[tuple[str, Any]] = [("image_encoder", description)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending.extend((str(key), inner) for key, inner in value.items())
        elif isinstance(value, list):
            pending.extend((name, inner) for inner in value)
        is_layers = "layers" in name or name in ("depth", "depths")
        largest = LAYERS[1] if is_layers else _LARGEST_SIDE if name == "image_size" else TOKENS[1]
        too_large = isinstance(value, int | float) and not -largest <= value <= largest
        is_code = name in _CODE and value not in (None, "eager", "sdpa", {})
        if too_large or is_code:
            raise ConfigError(
                f"image encoder: {shortened(name, quoted=False)} is {shortened(value)}, which no encoder here has."
            )


def _described(description: dict[str, Any]) -> nn.Module:
    """Return the network of a description, with random weights."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    settings = description["model"]
    name = settings["model_type"]
    if name in LITE:
        return LiteBackbone(name)
    config = AutoConfig.for_model(**settings)
    model_class: Any = MODEL_MAPPING[type(config)]
    options = {}
    if not description["pooler"] and _can_drop_pooler(model_class):
        options["add_pooling_layer"] = False
    model = model_class(config, **options)
    return getattr(model, "vision_model", model)


def _preprocessor(folder: Path) -> dict[str, Any]:
    """Return a folder's settings of image size and colors; empty where it has none."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    return read_object(path, CheckpointError)


def _can_drop_pooler(model_class: Any) -> bool:
    """Return True if a model can be made without its pooling layer."""
    return "add_pooling_layer" in inspect.signature(model_class.__init__).parameters


def _load(folder: Path) -> Any:
    """Load the image part of a model; a pooling layer whose weights are not in the folder is left out."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        options: dict[str, Any] = {
            "use_safetensors": True,
            "local_files_only": True,
            "trust_remote_code": False,
        }
        if _can_drop_pooler(MODEL_MAPPING[type(config)]) and not _has_pooler(folder):
            options["add_pooling_layer"] = False
        model, loading = AutoModel.from_pretrained(
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
    wrong = [*loading["missing_keys"], *loading.get("mismatched_keys", [])]
    if wrong:
        first = min(str(name) for name in wrong)
        raise CheckpointError(
            f"{folder}: {len(wrong)} weights are missing or of another size, the first {first!r}."
        )
    vision_model = getattr(model, "vision_model", model)
    if "pixel_values" not in inspect.signature(vision_model.forward).parameters:
        raise CheckpointError(
            f"{folder} holds a {config.model_type!r} model, which sees no images."
        )
    return vision_model


def _has_pooler(folder: Path) -> bool:
    """Return True if the weights of a pooling layer are in the folder (else transformers would draw random ones)."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            names = list(weights.keys())
        if any("pooler" in name for name in names):
            return True
    return False


def _side(settings: dict[str, Any]) -> int | None:
    """Return the side of the crops that an encoder takes, from one of the ways in which this is written."""
    for name in ("crop_size", "size"):
        value = settings.get(name)
        if isinstance(value, dict):
            value = value.get("height") or value.get("shortest_edge")
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _settings(backbone: nn.Module) -> str:
    """Return a model's settings as JSON, without paths and versions."""
    config: Any = getattr(backbone, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    for name in NOT_HASHED:
        settings.pop(name, None)
    return json.dumps(settings, sort_keys=True, default=str)
