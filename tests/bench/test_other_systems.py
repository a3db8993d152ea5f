"""A system of another package in a table: its checkpoints by label, and rows like those of the systems that ship."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from torch import nn

import terrazzo as tz
from terrazzo.bench import histology as bench_histology
from terrazzo.bench.entries import of_model, resolve
from terrazzo.bench.run import run
from terrazzo.models.base import Embedding, FoundationModel, Prepared
from terrazzo.models.estimate import Plan
from terrazzo.models.options import EmbedOptions
from terrazzo.systems import registry


@dataclass(frozen=True)
class OtherConfig:
    """One number."""

    width: int = 4


class Other(FoundationModel):
    """Random projections of log counts."""

    model_type: ClassVar[str] = "other"
    default_key: ClassVar[str] = "X_other"
    config_class: ClassVar[type] = OtherConfig
    title: ClassVar[str] = "Other"

    def _build(self) -> nn.Module:
        return nn.Linear(self.vocabulary.n_tokens, self.config.width)

    def prepare(self, tissue: Any, options: Any = None, *, obs: Any = None) -> Prepared:
        match = self.vocabulary.match(tissue)
        return PreparedOther(self, tissue, match)


class PreparedOther(Prepared):
    """A slice and its genes."""

    def __init__(self, model: Other, tissue: Any, match: Any) -> None:
        self.model, self.tissue, self.match = model, tissue, match
        self.settings = {}

    def _plan(self) -> Plan:
        return Plan(self.tissue.n_cells, 0, self.match.coverage, 0.0)

    def embed(self, bars: Any = None) -> Embedding:
        weights = self.model.module.weight.detach().numpy()[:, self.match.column_token]
        vectors = np.log1p(self.tissue.counts.toarray()) @ weights.T
        empty = np.zeros(self.tissue.n_cells, dtype=bool)
        return Embedding(vectors.astype(np.float32), empty, self.match.coverage)


SYSTEM = registry.System(name="other", title="Other", models={"other": f"{__name__}:Other"})


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the system as an installed package would."""
    point = SimpleNamespace(name="other", value=f"{__name__}:SYSTEM", load=lambda: SYSTEM)
    every = registry.metadata.entry_points

    def entry_points(**wanted: Any) -> Any:
        return [point] if wanted == {"group": registry.GROUP} else every(**wanted)

    monkeypatch.setattr(registry.metadata, "entry_points", entry_points)
    registry.systems.cache_clear()
    yield
    registry.systems.cache_clear()


@pytest.fixture
def checkpoint(registered: None, simulated: Any, tmp_path: Path) -> Path:
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(simulated(60, 60))])
    model = Other(OtherConfig(), vocabulary, provenance={"weights": "trained"})
    return model.save_pretrained(tmp_path / "checkpoint")


def test_its_checkpoint_gets_a_row_under_any_label(
    table: Any, data_folder: Path, checkpoint: Path
) -> None:
    models = [f"other={checkpoint}", f"my model={checkpoint}"]
    found = run(table(models=["other"], heads=["linear"]), data=data_folder, models=models)
    assert {"Other", "my model"} <= set(found.scores["system"])
    assert found.absent.empty
    scores = found.summary().set_index(["system", "split", "metric"])["mean"]
    assert scores["Other", "random", "accuracy"] == scores["my model", "random", "accuracy"] > 0.4


@pytest.mark.usefixtures("registered")
def test_a_table_may_name_it_without_weights() -> None:
    (missing,) = [entry for entry in resolve(["other"]) if entry.missing]
    assert (missing.title, missing.missing) == (
        "Other",
        "no weights were given (--models other=FOLDER)",
    )


def test_tasks_that_it_cannot_do_say_so(table: Any, data_folder: Path, checkpoint: Path) -> None:
    squares = {"task": "reconstruction", "metrics": ["mse"], "heads": ["none"], "sizes": [2]}
    protocol = table(**squares, label="", bin_um=40.0, genes=5, runs=1)
    found = run(protocol, data=data_folder, models=[f"other={checkpoint}"])
    (reason,) = found.absent["reason"]
    assert reason.startswith("a Other cannot fill in hidden tissue")
    (entry,) = [e for e in resolve([], [f"other={checkpoint}"]) if e.title == "Other"]
    *_, last = bench_histology.select([entry])
    assert (last.title, last.missing) == ("Other", "sees no image")


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
    entries = of_model("Seer", model)
    assert [entry.title for entry in entries] == ["Seer", "Seer, image only", "Seer, genes only"]
    for entry in entries:
        assert entry.fit is not None
        entry.fit([])(None)  # type: ignore[arg-type]
    assert [options["modality"] for options in asked] == ["both", "image", "genes"]
    selected = bench_histology.select(entries)
    assert [e.title for e in selected if e.title.startswith("Seer")] == ["Seer, image only"]
