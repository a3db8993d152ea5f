"""A system of another package in a table: its checkpoints by label, and rows like those of the systems that ship."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plain_system import SYSTEM, plain_model

from terrazzo.bench import entries
from terrazzo.bench import histology as bench_histology
from terrazzo.bench.entries import of_model, resolve
from terrazzo.bench.run import run
from terrazzo.models.options import EmbedOptions
from terrazzo.systems import registry


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the system as an installed package would."""
    point = SimpleNamespace(name="plain", value="plain_system:SYSTEM", load=lambda: SYSTEM)
    every = registry.metadata.entry_points

    def entry_points(**wanted: Any) -> Any:
        return [point] if wanted == {"group": registry.GROUP} else every(**wanted)

    monkeypatch.setattr(registry.metadata, "entry_points", entry_points)
    registry.systems.cache_clear()
    yield
    registry.systems.cache_clear()


@pytest.fixture
def checkpoint(registered: None, simulated: Any, tmp_path: Path) -> Path:
    model = plain_model(simulated(60, 60), provenance={"weights": "trained"})
    return model.save_pretrained(tmp_path / "checkpoint")


def test_its_checkpoint_gets_a_row_under_any_label(
    table: Any, data_folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "ALWAYS", ("pca",))
    models = [f"plain={checkpoint}", f"my model={checkpoint}"]
    found = run(table(models=["plain"], heads=["linear"]), data=data_folder, models=models)
    assert {"Plain", "my model"} <= set(found.scores["system"])
    assert found.absent.empty
    scores = found.summary().set_index(["system", "split", "metric"])["mean"]
    assert scores["Plain", "random", "accuracy"] == scores["my model", "random", "accuracy"] > 0.4


@pytest.mark.usefixtures("registered")
def test_a_table_may_name_it_without_weights() -> None:
    (missing,) = [entry for entry in resolve(["plain"]) if entry.missing]
    assert (missing.title, missing.missing) == (
        "Plain",
        "no weights were given (--models plain=FOLDER)",
    )


def test_tasks_that_it_cannot_do_say_so(table: Any, data_folder: Path, checkpoint: Path) -> None:
    squares = {"task": "reconstruction", "metrics": ["mse"], "heads": ["none"], "sizes": [2]}
    protocol = table(**squares, label="", bin_um=40.0, genes=5, runs=1)
    found = run(protocol, data=data_folder, models=[f"plain={checkpoint}"])
    (reason,) = found.absent["reason"]
    assert reason.startswith("a Plain cannot fill in hidden tissue")
    (entry,) = [e for e in resolve([], [f"plain={checkpoint}"]) if e.title == "Plain"]
    *_, last = bench_histology.select([entry])
    assert (last.title, last.missing) == ("Plain", "sees no image")


def test_one_that_reads_histology_has_a_row_for_each_modality() -> None:
    @dataclass(frozen=True)
    class Options(EmbedOptions):
        modality: str = "both"

    asked: list[dict[str, Any]] = []
    model: Any = SimpleNamespace(
        title="Seer",
        options_class=Options,
        fingerprint=lambda: "a",
        embed=lambda adata, **options: asked.append(options),
    )
    found = of_model("Seer", model)
    assert [entry.title for entry in found] == ["Seer", "Seer, image only", "Seer, genes only"]
    for entry in found:
        assert entry.fit is not None
        entry.fit([])(None)  # type: ignore[arg-type]
    assert [options["modality"] for options in asked] == ["both", "image", "genes"]
    selected = bench_histology.select(found)
    assert [e.title for e in selected if e.title.startswith("Seer")] == ["Seer, image only"]
