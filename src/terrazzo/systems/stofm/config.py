"""SToFM's hyperparameters and its presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from terrazzo.errors import ConfigError
from terrazzo.systems.stofm.cell_encoder import CellEncoderConfig
from terrazzo.systems.stofm.se2 import SE2Config
from terrazzo.systems.stofm.subslices import SubSliceConfig

__all__ = ["PRESETS", "SToFMConfig", "preset"]


@dataclass(frozen=True)
class SToFMConfig:
    """Hyperparameters of SToFM: all that decides its output, apart from weights and vocabulary.

    Attributes
    ----------
    cell_encoder
        Gene scale.
    se2
        SE(2) Transformer; ``input_dim`` equals the cell encoder's ``output_dim``.
    subslices
        Macro and micro scale.
    output
        What ``embed`` writes: ``"niche"``, the SE(2) Transformer's vector (paper), or ``"own+niche"``, the cell
        encoder's vector and the SE(2) Transformer's side by side, equal in norm; their columns are in ``uns``.
    """

    cell_encoder: CellEncoderConfig = field(default_factory=CellEncoderConfig)
    se2: SE2Config = field(default_factory=SE2Config)
    subslices: SubSliceConfig = field(default_factory=SubSliceConfig)
    output: Literal["niche", "own+niche"] = "niche"

    def __post_init__(self) -> None:
        if self.cell_encoder.output_dim != self.se2.input_dim:
            raise ValueError(
                f"se2.input_dim ({self.se2.input_dim}) must equal cell_encoder.output_dim "
                f"({self.cell_encoder.output_dim})."
            )
        _check_heads("cell_encoder", self.cell_encoder.hidden_size, self.cell_encoder.num_heads)
        _check_heads("se2", self.se2.hidden_size, self.se2.num_heads)


def _check_heads(part: str, hidden_size: int, num_heads: int) -> None:
    if hidden_size % num_heads:
        raise ValueError(
            f"{part}.hidden_size ({hidden_size}) must be a multiple of its num_heads ({num_heads})."
        )


PRESETS = {
    # tests and the demo: thousands of cells a second on a laptop
    "tiny": SToFMConfig(
        CellEncoderConfig(
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            intermediate_size=128,
            max_length=129,
            output_dim=64,
            attention_dropout=0.0,
        ),
        SE2Config(
            input_dim=64, hidden_size=64, num_layers=2, num_heads=4, ffn_size=128, num_kernels=32
        ),
        SubSliceConfig(),
    ),
    # a laptop: 18 times (740 genes a cell) to 75 times (2,047 genes) cheaper a cell than the paper's encoder
    "small": SToFMConfig(
        CellEncoderConfig(
            hidden_size=256,
            num_layers=4,
            num_heads=8,
            intermediate_size=512,
            max_length=513,
            output_dim=128,
            attention_dropout=0.0,
        ),
        SE2Config(
            input_dim=128, hidden_size=128, num_layers=4, num_heads=8, ffn_size=256, num_kernels=64
        ),
        SubSliceConfig(),
    ),
    # table A.8
    "paper": SToFMConfig(),
}


def preset(name: str, vocab_size: int | None = None) -> SToFMConfig:
    """Return a preset by name.

    Parameters
    ----------
    name
        ``"tiny"``, ``"small"`` or ``"paper"`` (table A.8).
    vocab_size
        Number of tokens of the vocabulary it is built for; None keeps the published 25,427.

    Raises
    ------
    ConfigError
        No such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    config = PRESETS[name]
    if vocab_size is None:
        return config
    return replace(config, cell_encoder=replace(config.cell_encoder, vocab_size=vocab_size))
