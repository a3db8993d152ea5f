"""Completion: the clean components of every cell, from whatever genes and depth there are, beside any other system."""

from terrazzo.systems.registry import System

__all__ = ["SYSTEM"]

_HERE = "terrazzo.systems.completion"

SYSTEM = System(
    name="completion",
    title="Completion",
    models={"completion": f"{_HERE}.model:Completed"},
    stages={"complete": f"{_HERE}.stages:Complete"},
    recipes=f"{_HERE}.recipes",
    page="completion",
)
