"""ST as images: croppable multi-channel windows, masked autoencoder (Zhu et al. 2026)."""

from terrazzo.systems.registry import System

__all__ = ["SYSTEM"]

_HERE = "terrazzo.systems.stimage"

SYSTEM = System(
    name="stimage",
    title="ST as images",
    models={"stimage": f"{_HERE}.model:STImage"},
    options={"stimage": f"{_HERE}.options:STImageEmbedOptions"},
    stages={"stimage-pretrain": f"{_HERE}.stages:Pretrain"},
    recipes=f"{_HERE}.recipes",
    figures={"grid": f"{_HERE}.plot:grid"},
    uses=f"{_HERE}.uses:uses",
    page="stimage",
)
