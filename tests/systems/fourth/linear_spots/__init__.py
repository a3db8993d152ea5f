"""A linear autoencoder over spots: a small system outside terrazzo, as an example and for the tests."""

from terrazzo.systems.registry import System

SYSTEM = System(
    name="linear",
    title="Linear",
    models={"linear": "linear_spots.model:Linear"},
    options={"linear": "linear_spots.options:LinearEmbedOptions"},
    stages={"linear-pretrain": "linear_spots.stages:LinearPretrain"},
    recipes="linear_spots.recipes",
)
