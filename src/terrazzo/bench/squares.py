"""Hidden squares in a table: the trivial answers always, models that can fill them in, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from terrazzo import tasks
from terrazzo.bench.protocols import Protocol
from terrazzo.bench.samples import Scene
from terrazzo.bench.systems import ALWAYS, System
from terrazzo.errors import InputError
from terrazzo.models.baselines import KINDS
from terrazzo.tasks.reconstruction import BASELINES
from terrazzo.tasks.results import TaskResult

CANNOT = "vectors of cells that are shown say nothing of one that is hidden"


def who(found: Sequence[System]) -> list[System]:
    """Return who takes part: the trivial answers in place of the baselines that embed.

    A baseline that a table or a person asks for by name beyond those of every table gets its row, which says why.
    """
    embedded = {kind.title for name, kind in KINDS.items() if name in ALWAYS}
    rest = [system for system in found if system.title not in embedded]
    for i, system in enumerate(rest):
        if "obsm:" in system.missing:
            rest[i] = replace(system, missing=f"not part of terrazzo, and {CANNOT}")
    return [*(System(name, fit=_nothing, mark="trivial") for name in BASELINES), *rest]


def _nothing(slices: Any) -> Callable[[Any], None]:
    raise NotImplementedError("a trivial answer to a hidden square embeds nothing")


class Squares:
    """Scores systems on the squares of a table; what is trivial is answered once for each part."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self._trivial: dict[int, TaskResult] = {}

    def score(self, scene: Scene, system: System) -> TaskResult:
        """Return the scores of one system; whatever it is, it sees the slice without labels and without the square.

        Raises
        ------
        InputError
            It has nothing to say of hidden tissue.
        """
        if system.title in BASELINES:
            if id(scene) not in self._trivial:
                self._trivial[id(scene)] = self._run(scene, {})
            return _of(self._trivial[id(scene)], system.title)
        fill_in = getattr(system.model, "reconstruct", None)
        if fill_in is None:
            kind = f"a {system.model.title} cannot fill in hidden tissue: " if system.model else ""
            raise InputError(f"{kind}{CANNOT}")
        grid = (
            {"bin_um": self.protocol.bin_um} if self.protocol.bin_um else {}
        )  # else as the model was trained
        return _of(self._run(scene, {system.title: partial(fill_in, **grid)}), system.title)

    def _run(self, scene: Scene, predictors: dict[str, Any]) -> TaskResult:
        protocol = self.protocol
        return tasks.reconstruct(
            scene.test.bare,
            predictors,
            size=protocol.sizes,
            n_genes=protocol.genes,
            choose=protocol.choose,
            repeats=protocol.runs,
            bin_um=protocol.bin_um,
            progress=False,
        )


def _of(result: TaskResult, system: str) -> TaskResult:
    return replace(result, metrics=result.metrics[result.metrics["system"] == system])
