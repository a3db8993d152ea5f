"""The systems by name: what each one registers. Nothing is imported before it is asked for.

A system is a folder with a ``SYSTEM`` in its ``__init__.py`` and a line in :data:`BUILT_IN`. A system of another
package is the same object behind an entry point of the group ``terrazzo.systems``::

    [project.entry-points."terrazzo.systems"]
    mine = "mine.terrazzo_system:SYSTEM"
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import Any

from terrazzo.errors import ConfigError, did_you_mean

__all__ = [
    "System",
    "figure",
    "model_class",
    "recipe_files",
    "resolve",
    "stage_class",
    "system_of_model",
    "systems",
]

BUILT_IN = (
    "terrazzo.systems.stofm",
    "terrazzo.systems.stimage",
    "terrazzo.systems.stalign",
    "terrazzo.systems.scgpt",
    "terrazzo.systems.completion",
)
GROUP = "terrazzo.systems"  # of entry points

Reference = str  # "package.module:name", imported when it is needed


@dataclass(frozen=True)
class System:
    """What a system registers. Every reference is ``"package.module:name"``.

    Attributes
    ----------
    name
        One word, as the command line takes it: ``"stofm"``.
    title
        As people call it: ``"SToFM"``.
    models
        Model type, as checkpoints state it, to the class: a :class:`terrazzo.models.base.FoundationModel`.
    options
        Model type to its options of ``embed``: a subclass of :class:`terrazzo.models.options.EmbedOptions`. None: that
        class itself.
    stages
        Name of a stage, as recipes state it, to its class: a :class:`terrazzo.training.stage.Stage`.
    recipes
        Package with ``*.yaml`` files: recipes that can be named without a path.
    cell_encoders
        Model type to a function ``(model) -> frozen cell encoder``, where another system may read cells through it.
    converters
        Kind of published weights to a function that converts them; a row of ``terrazzo convert``.
    figures
        Name to a function: figures of :mod:`terrazzo.plot` that only this system can draw.
    uses
        Function ``(slice, spot_um) -> {title: line}``: what the system can do with a slice, for ``terrazzo info``.
    page
        Address of its page in the documentation.
    """

    name: str
    title: str
    models: Mapping[str, Reference]
    options: Mapping[str, Reference] = field(default_factory=dict)
    stages: Mapping[str, Reference] = field(default_factory=dict)
    recipes: str = ""
    cell_encoders: Mapping[str, Reference] = field(default_factory=dict)
    converters: Mapping[str, Reference] = field(default_factory=dict)
    figures: Mapping[str, Reference] = field(default_factory=dict)
    uses: Reference = ""
    page: str = ""


@cache
def systems() -> dict[str, System]:
    """Return all systems by name: those of terrazzo, then those of other packages by name.

    Raises
    ------
    ConfigError
        An entry point that cannot be imported or is not a :class:`System`; a name, model type or stage that two
        systems claim.
    """
    out: dict[str, System] = {}
    claimed: dict[tuple[str, str], str] = {}
    for source, system in _declared():
        claims = [("system", system.name)]
        claims += [("model type", name) for name in system.models]
        claims += [("stage", name) for name in system.stages]
        for claim in claims:
            if claim in claimed:
                kind, name = claim
                raise ConfigError(
                    f"{source} registers the {kind} {name!r}, which {claimed[claim]} registers already: "
                    "uninstall one of them."
                )
            claimed[claim] = source
        out[system.name] = system
    return out


def _declared() -> Iterator[tuple[str, System]]:
    for module in BUILT_IN:
        yield module, importlib.import_module(module).SYSTEM
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name):
        source = f"the entry point {point.name!r} ({point.value})"
        try:
            system = point.load()
        except Exception as error:  # the code of another package may raise anything
            raise ConfigError(
                f"{source} of {GROUP} cannot be imported ({error}): fix or uninstall its package."
            ) from error
        if not isinstance(system, System):
            raise ConfigError(f"{source} of {GROUP} is not a terrazzo.systems.registry.System.")
        yield source, system


def resolve(reference: Reference) -> Any:
    """Import ``"package.module:name"`` and return what it names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def system_of_model(model_type: str) -> System | None:
    """Return the system that registers a model type; None where none does."""
    for system in systems().values():
        if model_type in system.models:
            return system
    return None


def model_class(model_type: str) -> Any:
    """Return the class of a model type; None where no system registers it."""
    system = system_of_model(model_type)
    if system is None:
        return None
    return resolve(system.models[model_type])


def stage_class(name: object) -> Any:
    """Return the class of a stage.

    Raises
    ------
    ConfigError
        No system registers it; the nearest name is given.
    """
    known: dict[str, Reference] = {}
    for system in systems().values():
        known.update(system.stages)
    if str(name) not in known:
        hint = did_you_mean(name, known, f"The stages are {', '.join(known)}.")
        raise ConfigError(f"there is no stage {name!r}.{hint}")
    return resolve(known[str(name)])


def recipe_files() -> dict[str, Traversable]:
    """Return the recipes that ship with the systems: name to YAML file."""
    out: dict[str, Traversable] = {}
    for system in systems().values():
        if not system.recipes:
            continue
        files = [one for one in resources.files(system.recipes).iterdir() if one.is_file()]
        for file in sorted(files, key=lambda one: one.name):
            if file.name.endswith(".yaml"):
                out[file.name.removesuffix(".yaml")] = file
    return out


def figure(name: str) -> Any:
    """Return a figure that a system registers; None where none does."""
    for system in systems().values():
        if name in system.figures:
            return resolve(system.figures[name])
    return None
