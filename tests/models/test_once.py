"""A slice is read, matched and cut once, whatever is said about it before it is embedded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anndata import AnnData

import terrazzo as tz
from terrazzo.cli import main
from terrazzo.systems.stalign.aligned import AlignedSlice
from terrazzo.systems.stimage.gridded import GriddedSlice
from terrazzo.systems.stofm import cell_model

READ, MATCHED, CUT = "Slice.from_anndata", "Vocabulary.match", "tokens, grid or crops"
ONCE = {READ: 1, MATCHED: 1, CUT: 1}
SYSTEMS = ("stofm", "stimage", "stalign")


@pytest.fixture(scope="module")
def slices(histology: Callable[..., AnnData]) -> list[AnnData]:
    return [histology(60, 60, seed=seed, image_px=300) for seed in (0, 1)]


@pytest.fixture(scope="module")
def models(tiny_model: Any, align_model: Any, slices: list[AnnData]) -> dict[str, Any]:
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(slices[0])])
    return {
        "stofm": tiny_model(),
        "stimage": tz.STImage("tiny", vocabulary),
        "stalign": align_model(),
    }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of what should run once a slice, in all three systems."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str, label: str) -> None:
        whole = getattr(owner, name)
        is_class_method = isinstance(vars(owner).get(name), classmethod)

        def counted(*args: Any, **options: Any) -> Any:
            counts[label] += 1
            return whole(*(args[1:] if is_class_method else args), **options)

        monkeypatch.setattr(owner, name, classmethod(counted) if is_class_method else counted)

    count(tz.Slice, "from_anndata", READ)
    count(tz.Vocabulary, "match", MATCHED)
    count(cell_model, "rank_tokens", CUT)
    count(GriddedSlice, "make", CUT)
    count(AlignedSlice, "make", CUT)
    return counts


@pytest.mark.parametrize("system", SYSTEMS)
def test_in_memory(
    system: str, models: dict[str, Any], slices: list[AnnData], calls: Counter[str]
) -> None:
    models[system].embed(slices[0].copy(), progress=False)
    assert calls == ONCE
    models[system].embed([adata.copy() for adata in slices], progress=False)
    assert calls == dict.fromkeys(ONCE, 3)


@pytest.mark.parametrize("system", SYSTEMS)
def test_from_files_with_a_plan(
    system: str,
    models: dict[str, Any],
    slices: list[AnnData],
    calls: Counter[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [tmp_path / f"s{number}.h5ad" for number in range(2)]
    for adata, path in zip(slices, paths, strict=True):
        adata.write_h5ad(path)
    plans: list[str] = []
    done = list(tz.embed_files(models[system], paths, tmp_path / "out", announce=plans.append))
    assert [one.status for one in done] == ["embedded", "embedded"]
    assert len(plans) == 2
    assert calls == dict.fromkeys(ONCE, 2)
    again = list(tz.embed_files(models[system], paths, tmp_path / "out", announce=plans.append))
    assert [one.status for one in again] == ["unchanged", "unchanged"]
    assert calls == dict.fromkeys(ONCE, 2)  # a finished slice is not even read

    calls.clear()
    checkpoint = models[system].save_pretrained(tmp_path / "checkpoint")
    words = ["embed", paths[0], "--model", checkpoint, "--out", tmp_path / "more"]
    assert main([str(word) for word in words]) == 0
    assert "60 cells" in capsys.readouterr().out
    assert calls == ONCE
