"""Expression from histology in a table: entries that see pictures and no count, and the parts that weights serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from terrazzo.bench import histology as bench_histology
from terrazzo.bench import render
from terrazzo.bench import run as running
from terrazzo.bench.entries import Entry, resolve
from terrazzo.bench.run import run
from terrazzo.bench.samples import KEY
from terrazzo.errors import ConfigError, InputError
from terrazzo.models.card import TRAINED_ON, name_hash
from terrazzo.systems.stalign.image_baselines import ImageBaseline

PARTS = [
    {
        "name": "one",
        "patient": "P",
        "dataset": "hist",
        "test": "a",
        "train": ["c"],
        "settings": ["cross"],
    },
    {
        "name": "two",
        "patient": "P",
        "dataset": "hist",
        "test": "b",
        "train": ["c"],
        "settings": ["cross"],
    },
    {
        "name": "three",
        "patient": "Q",
        "dataset": "hist",
        "test": "c",
        "train": ["a", "b"],
        "settings": ["cross"],
    },
]
TRIVIAL = [bench_histology.GENE_MEAN, "Color statistics", "Color statistics, by slice"]
NAMED, VARIABLE = bench_histology.NAMED, "5 variable genes"


@pytest.fixture(scope="session")
def pictured(tmp_path_factory: pytest.TempPathFactory, histology: Any) -> Path:
    """Write the dataset ``hist``: three slices with their sections; the third has one gene less."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "hist").mkdir()
    for i, name in enumerate("abc"):
        adata = histology(90, 40, n_regions=3, n_types=4, seed=i, depth=4000.0, image_px=320).copy()
        adata.obsm["X_given"] = np.random.default_rng(i).normal(size=(adata.n_obs, 3))
        (adata[:, 1:].copy() if name == "c" else adata).write_h5ad(folder / "hist" / f"{name}.h5ad")
    return folder


@pytest.fixture(autouse=True)
def _without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_histology, "is_installed", lambda: False)


@pytest.fixture
def genes(table: Any) -> Callable[..., Any]:
    """Make a table; keywords change its keys."""

    def make(**keys: Any) -> Any:
        plain = {
            "task": "image_to_gene",
            "label": "",
            "metrics": ["mse", "pearson"],
            "parts": PARTS,
            "genes": 5,
            "gene_names": ["SIM1", "SIM3", "SIM5", "NEVER"],
            "heads": ["linear"],
        }
        return table(**(plain | keys))

    return make


def mean(found: Any, system: str, part: str, split: str, metric: str = "mse") -> float:
    table = found.summary()
    here = table[
        table[["system", "part", "split", "metric"]].eq([system, part, split, metric]).all(axis=1)
    ]
    assert len(here) == 1
    return float(here["mean"].iloc[0])


def test_trivial_answers_and_who_is_missing(genes: Any, pictured: Path) -> None:
    found = run(genes(models=["stalign", "uni", "pearson", "novae"]), data=pictured)
    assert list(dict.fromkeys(found.scores["system"])) == TRIVIAL
    assert set(found.scores["split"]) == {NAMED, VARIABLE}
    reasons = dict(zip(found.absent["system"], found.absent["reason"], strict=True))
    assert reasons["ST-Align"].startswith("no weights were given")
    assert reasons["UNI"] == "no weights were given (--models uni=FOLDER of a transformers model)"
    assert reasons["Pearson-residual PCA"] == bench_histology.READS_COUNTS
    assert "not part of terrazzo" in reasons["novae"]
    assert "pip install 'terrazzo[histology]'" in reasons[bench_histology.LITE]
    told = " | ".join(found.notes)
    assert "one: left out, for not every training slice lists them: SIM1, NEVER" in told
    assert "three: left out, for not every training slice lists them: NEVER" in told
    assert set(found.by_gene["gene"]) == {
        "SIM3",
        "SIM5",
    }  # SIM1 is learned where a and b teach it, and not measured in c
    for part in ("one", "two", "three"):
        assert mean(found, TRIVIAL[0], part, VARIABLE, "pearson") == 0
        assert mean(found, TRIVIAL[2], part, VARIABLE) < mean(found, TRIVIAL[0], part, VARIABLE)


def test_the_gene_mean_by_hand(genes: Any, pictured: Path) -> None:
    from terrazzo import datasets
    from terrazzo.expression import expression
    from terrazzo.slices.panel import Panel

    found = run(genes(parts=PARTS[2:]), data=pictured)
    a, b, c = (
        expression(Panel.read(datasets.load("hist", n, pictured)), ["SIM3", "SIM5"]).to_numpy()
        for n in "abc"
    )
    error = (np.concatenate([a, b]).mean(0) - c) ** 2
    assert mean(found, bench_histology.GENE_MEAN, "three", NAMED) == pytest.approx(
        error.mean(), rel=1e-5
    )
    one = found.by_gene[
        (found.by_gene["system"] == bench_histology.GENE_MEAN) & (found.by_gene["metric"] == "mse")
    ]
    assert one.groupby("gene")["value"].mean().to_dict() == pytest.approx(
        {"SIM3": error[:, 0].mean(), "SIM5": error[:, 1].mean()}, rel=1e-5
    )


def test_st_align_its_twin_and_its_frozen_encoder(
    genes: Any, pictured: Path, align_model: Any, tmp_path: Path
) -> None:
    model = align_model()
    model.provenance = {"weights": "trained"}
    folder, eye = model.save_pretrained(tmp_path / "align"), tmp_path / "eye"
    model.module.image_encoder.backbone.save_pretrained(eye)
    given = [f"stalign={folder}", f"uni={eye}", "mine=obsm:X_given"]
    found = run(genes(parts=PARTS[:1], runs=1), data=pictured, models=given)
    blocks = (" [own ; niche]", ", own block", ", niche block")
    assert set(found.scores["system"]) == {
        *TRIVIAL,
        "UNI",
        "mine",
        bench_histology.FROZEN,
        f"{bench_histology.FROZEN}, by slice",
        *(f"ST-Align, image only{b}" for b in blocks),
        *(f"{bench_histology.UNTRAINED}{b}" for b in blocks),
    }
    assert list(found.absent["system"]) == [bench_histology.LITE]
    assert mean(found, "ST-Align, image only, own block", "one", VARIABLE) != mean(
        found, f"{bench_histology.UNTRAINED}, own block", "one", VARIABLE
    )
    text = render.to_markdown(found, "command")
    assert "## Measured, gene by gene: one, MSE" in text
    assert "| system | SIM3 | SIM5 |" in text
    assert render.to_record(found, "command")["by_gene"]


def test_a_twin_keeps_what_was_not_trained(align_model: Any, histology: Any) -> None:
    model = align_model()
    twin = bench_histology.untrained(model, 3)
    assert not twin.trained
    assert twin.module.image_encoder.fingerprint() == model.module.image_encoder.fingerprint()
    np.testing.assert_array_equal(twin.genes, model.genes)
    assert not np.allclose(
        *(
            m.embed(histology().copy(), modality="image", progress=False).obsm["X_stalign"]
            for m in (model, twin)
        )
    )


def test_no_count_is_seen_by_anybody(
    genes: Any, pictured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[AnnData] = []

    def look(adata: AnnData) -> None:
        seen.append(adata)
        assert adata.X.nnz == 0
        assert not adata.layers
        assert adata.raw is None
        assert not set(adata.obs) - {"array_row", "array_col"}
        ImageBaseline().embed(adata, key_added=KEY, progress=False)

    spy = Entry("Spy", lambda slices: look, reads="image")
    monkeypatch.setattr(running, "resolve", lambda *given: [*resolve(*given), spy])
    found = run(genes(parts=PARTS[:1]), data=pictured)
    assert len(seen) == 2
    assert mean(found, "Spy", "one", VARIABLE) == pytest.approx(
        mean(found, TRIVIAL[1], "one", VARIABLE)
    )


def test_weights_by_part_and_by_patient(
    genes: Any,
    pictured: Path,
    align_model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = [align_model(neighbors=k) for k in (3, 2)]
    folders = [m.save_pretrained(tmp_path / f"m{i}") for i, m in enumerate(models)]
    given = [f"stalign@P={folders[0]}"]
    told: list[str] = []
    monkeypatch.setattr(bench_histology, "NAMES", ())  # no color statistics
    few = {"runs": 1, "genes": 0}
    found = run(genes(**few), data=pictured, models=given, say=told.append)
    title = "ST-Align (untrained), image only"
    assert {line.split(":")[0] for line in told if title in line} == {"one", "two"}
    gone = found.absent[found.absent["system"] == title]
    assert gone["part"].tolist() == ["three"]
    assert "NAME@PART=FOLDER" in gone["reason"].iloc[0]
    whole = run(genes(**few), data=pictured, models=[*given, f"stalign@three={folders[1]}"])
    assert list(whole.absent["system"]) == [bench_histology.LITE]
    alone = run(genes(**few, parts=PARTS[2:]), data=pictured, models=[f"stalign={folders[1]}"])
    for system in (f"{title} [own ; niche]", bench_histology.FROZEN):
        assert mean(whole, system, "three", NAMED) == mean(alone, system, "three", NAMED)
    with pytest.raises(
        ConfigError, match=r"has no part or patient 'R' .*; it has: one, P, two, three, Q"
    ):
        run(genes(), data=pictured, models=[f"stalign@R={folders[0]}"])


@pytest.mark.parametrize(
    ("names", "refused"), [("b x", ["one", "two"]), ("x y", []), ("c", ["three"])]
)
def test_weights_that_have_seen_the_patient_are_refused(
    genes: Any,
    pictured: Path,
    align_model: Any,
    tmp_path: Path,
    names: str,
    refused: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_histology, "NAMES", ())  # no color statistics
    monkeypatch.setattr(bench_histology, "_frozen", lambda aligned: iter(()))
    model = align_model()
    model.provenance = {"weights": "trained", TRAINED_ON: " ".join(map(name_hash, names.split()))}
    folder = model.save_pretrained(tmp_path / "align")
    found = run(genes(runs=1, genes=0), data=pictured, models=[f"stalign={folder}"])
    gone = found.absent[found.absent["system"] == "ST-Align, image only"]
    assert gone["part"].tolist() == refused
    assert all("of the patient who is scored" in reason for reason in gone["reason"])
    twin = found.absent[found.absent["system"] == bench_histology.UNTRAINED]
    assert not len(twin)  # it was trained on nothing


def test_a_model_before_another_counts_too(align_model: Any) -> None:
    model = align_model()
    before = f'{{"{TRAINED_ON}": "{name_hash("a")}"}}'
    model.provenance = {TRAINED_ON: name_hash("b"), "before": before}
    assert bench_histology.trained_on(Entry("x", model=model)) == {name_hash("a"), name_hash("b")}


def test_a_slice_without_a_picture(genes: Any, pictured: Path, tmp_path: Path) -> None:
    import anndata

    (tmp_path / "hist").mkdir()
    for name in "abc":
        adata = anndata.read_h5ad(pictured / "hist" / f"{name}.h5ad")
        if name == "a":
            del adata.uns["spatial"]
        adata.write_h5ad(tmp_path / "hist" / f"{name}.h5ad")
    found = run(genes(runs=1), data=tmp_path)
    gone = found.absent[found.absent["system"] == "Color statistics"]
    assert gone["part"].tolist() == [
        "one",
        "three",
    ]  # where it is scored, and where it is learned from
    assert "has no histology image" in gone["reason"].iloc[0]
    assert bench_histology.GENE_MEAN in set(found.scores["system"])


@pytest.mark.slow
def test_variants_are_trained_on_training_slices_and_read_histology_alone(
    genes: Any, pictured: Path
) -> None:
    goal = {
        "optim": {"max_steps": 3, "warmup_steps": 1},
        "data": {"batch_spots": 32},
        "run": {"accelerator": "cpu"},
    }
    variants = [
        {"name": "full"},
        {"name": "image", "change": {"stalign-pretrain": {"objective": {"modality": "image"}}}},
        {"name": "genes", "change": {"stalign-pretrain": {"objective": {"modality": "genes"}}}},
    ]
    protocol = genes(
        parts=PARTS[:2],
        runs=1,
        genes=3,
        variants=variants,
        training={
            "stalign-pretrain": {**goal, "model": {"preset": "tiny", "image_encoder": "random"}}
        },
    )
    found = run(protocol, data=pictured)
    assert {"full [own ; niche]", "image [own ; niche]"} <= set(found.scores["system"])
    absent = found.absent.set_index("system")["reason"]
    assert set(absent.index) == {"genes", bench_histology.LITE}
    assert absent["genes"] == "it sees no image"
    assert isinstance(replace(protocol, runs=2), type(protocol))


def test_genes_that_nobody_measured(genes: Any, pictured: Path) -> None:
    with pytest.raises(
        InputError, match=r"no system could be run\. none of the named genes is in every .*: NEVER"
    ):
        run(genes(parts=PARTS[:1], gene_names=["NEVER"], genes=0), data=pictured)
