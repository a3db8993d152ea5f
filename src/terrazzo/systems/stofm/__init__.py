"""SToFM: ranked genes, virtual cells, sub-slices, SE(2) Transformer (Zhao et al., ICML 2025)."""

from terrazzo.systems.registry import System

__all__ = ["SYSTEM"]

_HERE = "terrazzo.systems.stofm"

SYSTEM = System(
    name="stofm",
    title="SToFM",
    models={
        "stofm": f"{_HERE}.model:SToFM",
        "cell_encoder": f"{_HERE}.cell_model:CellModel",
    },
    options={
        "stofm": f"{_HERE}.options:SToFMEmbedOptions",
        "cell_encoder": f"{_HERE}.options:CellEmbedOptions",
    },
    stages={
        "stofm-adapt": f"{_HERE}.stages:Adapt",
        "stofm-pretrain": f"{_HERE}.stages:Pretrain",
    },
    recipes=f"{_HERE}.recipes",
    cell_encoders={
        "stofm": f"{_HERE}.frozen:FrozenCellEncoder",
        "cell_encoder": f"{_HERE}.frozen:FrozenCellEncoder",
    },
    converters={
        "stofm": f"{_HERE}.convert:save_stofm",
        "geneformer": f"{_HERE}.convert:save_geneformer",
    },
    uses=f"{_HERE}.uses:uses",
    page="stofm",
)
