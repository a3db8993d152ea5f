"""scGPT: published checkpoints as a cell encoder, to compare with (Cui et al. 2024)."""

from terrazzo.systems.registry import System

__all__ = ["SYSTEM"]

_PACKAGE = "terrazzo.systems.scgpt"

SYSTEM = System(
    name="scgpt",
    title="scGPT",
    models={"scgpt": f"{_PACKAGE}.model:ScGPT"},
    options={"scgpt": f"{_PACKAGE}.options:ScGPTEmbedOptions"},
    cell_encoders={"scgpt": f"{_PACKAGE}.frozen:FrozenScGPT"},
    converters={"scgpt": f"{_PACKAGE}.convert:save_scgpt"},
)
