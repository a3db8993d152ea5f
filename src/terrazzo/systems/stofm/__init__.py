"""SToFM: ranked genes, virtual cells, sub-slices, SE(2) Transformer (Zhao et al., ICML 2025)."""

from terrazzo.systems.registry import System

__all__ = ["SYSTEM"]

_PACKAGE = "terrazzo.systems.stofm"

SYSTEM = System(
    name="stofm",
    title="SToFM",
    models={
        "stofm": f"{_PACKAGE}.model:SToFM",
        "cell_encoder": f"{_PACKAGE}.cell_model:CellModel",
    },
    options={
        "stofm": f"{_PACKAGE}.options:SToFMEmbedOptions",
        "cell_encoder": f"{_PACKAGE}.options:CellEmbedOptions",
    },
    stages={
        "stofm-adapt": f"{_PACKAGE}.stages:Adapt",
        "stofm-pretrain": f"{_PACKAGE}.stages:Pretrain",
    },
    recipes=f"{_PACKAGE}.recipes",
    cell_encoders={
        "stofm": f"{_PACKAGE}.frozen:FrozenCellEncoder",
        "cell_encoder": f"{_PACKAGE}.frozen:FrozenCellEncoder",
    },
    converters={
        "stofm": f"{_PACKAGE}.convert:save_stofm",
        "geneformer": f"{_PACKAGE}.convert:save_geneformer",
    },
    uses=f"{_PACKAGE}.uses:uses",
    page="stofm",
)
