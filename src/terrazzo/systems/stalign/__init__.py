"""ST-Align: histology and genes, spot and niche, contrastive (Lin et al. 2026)."""

from terrazzo.systems.registry import System

__all__ = ["SYSTEM"]

_HERE = "terrazzo.systems.stalign"

SYSTEM = System(
    name="stalign",
    title="ST-Align",
    models={"stalign": f"{_HERE}.model:STAlign"},
    options={"stalign": f"{_HERE}.options:STAlignEmbedOptions"},
    stages={"stalign-pretrain": f"{_HERE}.stages:Pretrain"},
    recipes=f"{_HERE}.recipes",
    converters={"uni": f"{_HERE}.convert:save_uni"},
    uses=f"{_HERE}.uses:uses",
    page="stalign",
)
