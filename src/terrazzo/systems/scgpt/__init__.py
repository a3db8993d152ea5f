"""scGPT: published checkpoints as a cell encoder, to compare with (Cui et al. 2024)."""

from terrazzo.systems.registry import System

__all__ = ["SYSTEM"]

_HERE = "terrazzo.systems.scgpt"

SYSTEM = System(
    name="scgpt",
    title="scGPT",
    models={"scgpt": f"{_HERE}.model:ScGPT"},
    options={"scgpt": f"{_HERE}.options:ScGPTEmbedOptions"},
    cell_encoders={"scgpt": f"{_HERE}.frozen:FrozenScGPT"},
    converters={"scgpt": f"{_HERE}.convert:save_scgpt"},
)
