"""Colors for a network: fixed statistics of each channel, so that a stain means the same on every slice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from terrazzo.errors import ConfigError, InputError


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of red, green and blue, on a scale from 0 to 1.

    They are fixed once, for all slices: an image that is brought to its own mean and spread would lose that it is dark,
    or pale, or mostly one of the two stains.

    Raises
    ------
    ConfigError
        Not three finite numbers each, or a deviation that is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> IMAGENET.apply(np.full((1, 2, 2, 3), 255, np.uint8)).shape
    (1, 3, 2, 2)
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if (
                values.shape != (3,)
                or not np.isfinite(values).all()
                or (name == "std" and (values <= 0).any())
            ):
                raise ConfigError(
                    f"{name} of the channels is {getattr(self, name)!r}; it must be three numbers"
                    f"{' above 0' if name == 'std' else ''}, on a scale from 0 to 1."
                )
            object.__setattr__(self, name, tuple(values.tolist()))

    @classmethod
    def fit(cls, crops: Iterable[NDArray[np.uint8]]) -> ChannelStatistics:
        """Measure them on batches of crops of the training slices, uint8 (n, H, W, 3); exact and in one pass.

        Raises
        ------
        InputError
            No crop, or a channel that never changes.
        """
        n, total, squares = 0, np.zeros(3), np.zeros(3)
        for batch in crops:
            for channel in range(3):
                counts = np.bincount(batch[..., channel].ravel(), minlength=256)
                level = np.arange(256) / 255
                total[channel] += counts @ level
                squares[channel] += counts @ level**2
            n += batch[..., 0].size
        if n == 0:
            raise InputError(
                "no crop to measure the colors of; give batches of uint8 (n, height, width, 3)."
            )
        mean = total / n
        variance = squares / n - mean**2
        if (variance < 1e-9).any():
            raise InputError("a color channel never changes in these crops; are they blank?")
        mean, std = mean.tolist(), np.sqrt(variance).tolist()
        return cls((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))

    def apply(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (n, 3, H, W) of crops, uint8 (n, H, W, 3): as networks take it."""
        scale, shift = 1 / (255 * np.array(self.std)), np.array(self.mean) / self.std
        values = crops.astype(np.float32) * scale.astype(np.float32) - shift.astype(np.float32)
        return np.ascontiguousarray(np.moveaxis(values, -1, 1))


IMAGENET = ChannelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What most published encoders were trained with, those of pathology too."""
