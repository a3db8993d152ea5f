"""The verbs for tasks and tables: from files to files, and one clear line where something cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml

import terrazzo as tz
from terrazzo.bench.entries import ALWAYS
from terrazzo.splitting import thin_counts
from terrazzo.systems.stimage import config as stimage_config
from terrazzo.systems.stimage.windows import WindowConfig
from terrazzo.systems.stofm.finetune import FineTuned
from terrazzo.tasks import Probe, TaskResult

pytestmark = pytest.mark.usefixtures("quiet_figures")
KEY = "X_t2"


@pytest.fixture(scope="session")
def made() -> list[Any]:
    """Two slices of one atlas with regions, types, proportions and the vectors of a baseline."""
    slices = tz.simulate.corpus(2, 200, n_genes=60, n_regions=3, n_types=4, seed=5)
    baseline = tz.Baseline("t2").fit(slices)
    for adata in slices:
        baseline.embed(adata)
        types = pd.get_dummies(adata.obs["cell_type"].astype(str), dtype=float)
        adata.obsm["proportions"] = (
            types.groupby(adata.obs["region"].to_numpy()).transform("mean").to_numpy()
        )
        adata.uns["proportions_names"] = types.columns.to_numpy(dtype=object)
    return slices


@pytest.fixture
def files(made: list[Any], tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"s{i}.h5ad" for i in range(2)]
    for adata, path in zip(made, paths, strict=True):
        adata.write_h5ad(path)
    return paths


@pytest.fixture
def few(made: list[Any], tmp_path: Path) -> list[Path]:
    """Write every fourth cell of each slice, for what trains."""
    paths = [tmp_path / f"few{i}.h5ad" for i in range(2)]
    for adata, path in zip(made, paths, strict=True):
        adata[::4].copy().write_h5ad(path)
    return paths


@pytest.fixture
def spoilt(made: list[Any], tmp_path: Path) -> Callable[..., Path]:
    """Write the first slice, changed."""

    def write(change: Callable[[Any], Any]) -> Path:
        adata = made[0].copy()
        change(adata)
        adata.write_h5ad(tmp_path / "spoilt.h5ad")
        return tmp_path / "spoilt.h5ad"

    return write


@pytest.fixture
def checkpoint(tiny_model: Any, tmp_path: Path) -> Path:
    return tiny_model().save_pretrained(tmp_path / "checkpoint")


def test_domains(call: Any, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, told, err = call(
        "domains", *files, "--use-rep", KEY, "-k", 3, "--out", out, "--label", "region"
    )
    assert (code, err) == (0, "")
    assert sorted(p.name for p in out.iterdir()) == [
        "s0-scores",
        "s0.h5ad",
        "s0.png",
        "s1-scores",
        "s1.h5ad",
        "s1.png",
    ]
    found = anndata.read_h5ad(out / "s0.h5ad")
    expected = tz.tasks.domains(anndata.read_h5ad(files[0]), use_rep=KEY, n_domains=3)
    assert (found.obs["X_t2_domain"].astype(str) == expected.obs["X_t2_domain"].astype(str)).all()
    result = TaskResult.load(out / "s0-scores")
    assert f"{result.score('ari'):.4f} ±" in told
    assert (result.summary()["n"] == 5).all()
    assert not [p for p in out.rglob("*") if "part" in p.name]


def test_probe_within_a_slice(call: Any, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--use-rep", KEY, "--label", "region", "--head", "linear", "--runs", 2, "--out", out)
    code, told, err = call("probe", files[0], *words, "--predict", files[1])
    assert (code, err) == (0, "")
    result = TaskResult.load(out / "scores")
    assert set(result.metrics["split"]) == {"random", "blocked"}
    assert result.score("accuracy", "random") > 0.8
    assert "accuracy" in told
    annotated = anndata.read_h5ad(out / "s1.h5ad")
    fitted = Probe.load(out / "probe")
    assert (
        annotated.obs["region_predicted"].astype(str) == fitted.predict(anndata.read_h5ad(files[1]))
    ).all()
    assert call("probe", files[0], *words)[0] == 0  # again, over its own results


def test_probe_across_slices(call: Any, files: list[Path], tmp_path: Path) -> None:
    words = ("--use-rep", KEY, "--label", "region", "--head", "knn", "--out", tmp_path / "out")
    code, _, err = call("probe", files[0], *words, "--test", files[1], "--runs", 1)
    assert (code, err) == (0, "")
    result = TaskResult.load(tmp_path / "out" / "scores")
    assert set(result.metrics["split"]) == {"cross"}
    assert result.score("accuracy") > 0.6


def test_probe_with_a_model(call: Any, refused: Any, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    target = anndata.read_h5ad(files[1])[:, :50].copy()
    del target.obsm[KEY]
    target.X, _ = thin_counts(target.X, 0.1, np.random.default_rng(0))
    other = tmp_path / "other.h5ad"
    target.write_h5ad(other)
    words = ("--label", "region", "--head", "linear", "--runs", 1, "--out", out, "--test", other)
    code, _, err = call("probe", files[0], "--model", "t3", *words, "--predict", other)
    assert code == 0
    assert "panels or depth differ" in err
    record = TaskResult.load(out / "scores").config["transfer"]
    assert record["n_genes_shared"] == 50
    assert "thinned to the target's depth" in record["copies"]
    annotated = anndata.read_h5ad(out / "other.h5ad")
    assert annotated.obsm["X_t3"].shape[0] == annotated.n_obs
    assert "region_predicted" in annotated.obs
    model = ("--model", "t3")
    assert call("probe", files[0], *model, *words, "--common-genes", "--no-copies")[0] == 0
    record = TaskResult.load(out / "scores").config["transfer"]
    assert (record["common_genes"], record["copies"]) == (True, [])
    words = ("--label", "region", "--test", other)
    with_vectors = ("probe", files[0], "--use-rep", KEY, *words)
    assert "these vectors are there already" in refused(*with_vectors, "--common-genes")
    assert "give either the vectors" in refused("probe", files[0], *words)
    few = tmp_path / "few.h5ad"
    target[:, :40].copy().write_h5ad(few)
    words = ("--label", "region", "--test", few)
    assert "40 genes in common" in refused("probe", files[0], *model, *words)


def test_probe_of_values(call: Any, files: list[Path], tmp_path: Path) -> None:
    words = (
        "--use-rep",
        KEY,
        "--values",
        "spatial",
        "--head",
        "linear",
        "--out",
        tmp_path / "out",
        "--runs",
        1,
    )
    assert call("probe", files[0], *words)[0] == 0
    assert "pearson" in set(TaskResult.load(tmp_path / "out" / "scores").metrics["metric"])


def test_deconvolve(call: Any, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--use-rep", KEY, "--head", "linear", "--runs", 1, "--out", out, "--predict", files[1])
    code, _, err = call("deconvolve", files[0], *words, "--test", files[1])
    assert (code, err) == (0, "")
    assert TaskResult.load(out / "scores").score("pearson") > 0.4
    shares = anndata.read_h5ad(out / "s1.h5ad").obsm["proportions_predicted"]
    np.testing.assert_allclose(np.asarray(shares).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("within", [True, False])
def test_impute_with_a_baseline(call: Any, files: list[Path], tmp_path: Path, within: bool) -> None:
    words = (
        "--model",
        "pca-nb1",
        "--n-genes",
        6,
        "--head",
        "linear",
        "--runs",
        1,
        "--out",
        tmp_path / "out",
    )
    code, told, err = call("impute", files[0], *words, *([] if within else ["--test", files[1]]))
    assert (code, err) == (0, "")
    result = TaskResult.load(tmp_path / "out" / "scores")
    assert set(result.metrics["split"]) == ({"random", "blocked"} if within else {"cross"})
    assert len(set(result.metrics["part"])) == 7
    assert "pearson" in told


def test_impute_with_a_checkpoint_and_named_genes(
    call: Any, few: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    genes = list(anndata.read_h5ad(few[0]).var_names[:2])
    named = [w for gene in genes for w in ("--gene", gene)]
    words = (
        "--model",
        checkpoint,
        *named,
        "--head",
        "linear",
        "--runs",
        1,
        "--out",
        tmp_path / "out",
    )
    code, _, err = call("impute", few[0], *words)
    assert (code, err) == (0, "")
    assert set(TaskResult.load(tmp_path / "out" / "scores").metrics["part"]) == {"", *genes}


class Filler:
    """A stand-in for ST as images: the mean of what is shown, and a note of how it was asked."""

    title, trained = "Filler", False

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def reconstruct(self, adata: Any, hidden: Any, genes: list[str], **options: Any) -> Any:
        self.asked.append(
            {"n": adata[hidden].X.nnz, "size": int(hidden.sum()), "genes": len(genes), **options}
        )
        counts = adata[~hidden, genes].X.toarray() + 0.0
        total = np.asarray(adata[~hidden].X.sum(axis=1))
        return np.tile(
            np.log1p(counts / np.maximum(total, 1) * 1e4).mean(axis=0), (hidden.sum(), 1)
        )


def test_reconstruct(
    call: Any, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler, out = Filler(), tmp_path / "out"
    monkeypatch.setattr(tz, "load", lambda source: filler)
    words = (
        "--model",
        "any",
        "--size",
        2,
        3,
        "--bin-um",
        40,
        "--n-genes",
        20,
        "--repeats",
        4,
        "--out",
        out,
    )
    code, told, err = call("reconstruct", files[0], *words, "--choose", "dispersion")
    assert (code, err) == (0, "")
    assert sorted(p.name for p in out.iterdir()) == ["hidden.png", "scores"]
    result = TaskResult.load(out / "scores")
    assert (result.config["sizes"], result.config["bin_um"], result.config["layout"]) == (
        [2, 3],
        40,
        "bin",
    )
    assert result.config["choose"] == "dispersion"
    assert (result.summary()["n"] == 4).all()
    assert "Filler (untrained)" in told
    assert "mean of 16 nearest" in told
    assert result.score("mse", "2 x 2", "Filler (untrained)") > 0
    assert [(one["n"], one["genes"], one["bin_um"]) for one in filler.asked] == [(0, 20, 40.0)] * 8
    assert "layout" not in filler.asked[0]  # what is not said is as the model was trained


def test_st_as_images_from_checkpoint_to_files(
    call: Any, made: list[Any], files: list[Path], tmp_path: Path
) -> None:
    windows = WindowConfig(window=6, channels=40, choose="spatial")
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(made[0])])
    config = stimage_config.preset("tiny", vocabulary.n_tokens, windows=windows)
    checkpoint = tz.STImage(config, vocabulary).save_pretrained(tmp_path / "stimage")
    grid = ("--model", checkpoint, "--bin-um", 40)
    code, _, err = call("embed", files[0], *grid, "--window", 4, "--out", tmp_path / "embedded")
    assert (code, err) == (0, "")
    record = anndata.read_h5ad(tmp_path / "embedded" / "s0.h5ad").uns["terrazzo"]["X_stimage"]
    settings = yaml.safe_load(record["settings"])
    assert (settings["bin_um"], settings["window"], settings["layout"]) == (40.0, 4, "auto")
    words = ("--size", 2, "--n-genes", 10, "--repeats", 2, "--out", tmp_path / "out")
    code, told, err = call("reconstruct", files[0], *grid, *words)
    assert (code, err) == (0, "")
    scores = [
        line.split("  ")[1:]
        for line in told.splitlines()
        if "ST as images (untrained) 2 x 2 " in line
    ]
    assert len(scores) == 2  # mse and mae, and a space after the longest name
    code, _, err = call("embed", files[0], "--model", checkpoint, "--out", tmp_path / "more")
    assert code == 2
    assert "bin_um=20 (--bin-um 20)" in err


def test_a_model_that_cannot_reconstruct(refused: Any, files: list[Path], checkpoint: Path) -> None:
    said = refused("reconstruct", files[0], "--model", checkpoint)
    assert "holds a SToFM, which cannot fill in hidden tissue" in said


def test_what_cannot_be_reconstructed(
    refused: Any, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tz, "load", lambda source: Filler())
    words = ("reconstruct", files[0], "--model", "any", "--repeats", 1)
    assert "bin_um=20 (--bin-um 20)" in refused(*words)
    assert "does not fit into the slice" in refused(*words, "--bin-um", 40, "--size", 400)
    assert "size is [0]" in refused(*words, "--bin-um", 40, "--size", 0)


def test_finetune(call: Any, few: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (
        "finetune",
        few[0],
        "--model",
        checkpoint,
        "--label",
        "region",
        "--epochs",
        1,
        "--out",
        out,
    )
    code, told, err = call(*words, "--test", few[1], "--predict", few[1])
    assert (code, err) == (0, "")
    assert set(TaskResult.load(out / "scores").metrics["split"]) == {"cross"}
    assert "accuracy" in told
    found, tuned = anndata.read_h5ad(out / "few1.h5ad"), FineTuned.load(out / "tuned")
    assert (
        found.obs["region_predicted"].astype(str) == tuned.predict(anndata.read_h5ad(few[1]))
    ).all()
    before = (out / "tuned" / "model" / "model.safetensors").stat().st_mtime_ns
    code, _, err = call(*words, "--no-score")
    assert code == 2
    assert "is not an empty folder" in err
    assert (out / "tuned" / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_bench(call: Any, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "data" / "made").mkdir(parents=True)
    for path in files:
        (tmp_path / "data" / "made" / path.name).write_bytes(path.read_bytes())
    plain = {
        "name": "small",
        "title": "A small table",
        "source": "data at hand",
        "task": "probe",
        "label": "region",
        "metrics": ["accuracy"],
        "heads": ["linear"],
        "models": ["stofm"],
        "parts": [{"name": "one", "dataset": "made", "test": "s0", "train": ["s1"]}],
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(plain))
    words = (
        "bench",
        tmp_path / "small.yaml",
        "--data",
        tmp_path / "data",
        "--seeds",
        1,
        "--out",
        tmp_path / "out",
    )
    code, told, err = call(*words, "--models", f"mine=obsm:{KEY}", "pearson")
    assert code == 0
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [
        ".html",
        ".json",
        ".md",
        ".png",
    ]  # no rows left
    text = (tmp_path / "out" / "small.md").read_text()
    assert text in told
    assert "| mine |" in text
    assert "| SToFM | not available | not available |" in text
    assert (
        f"terrazzo bench {tmp_path / 'small.yaml'} --data {tmp_path / 'data'} --models mine=obsm:{KEY} pearson"
        in text
    )
    assert "one: PCA: accuracy random" in err  # progress
    call(*words, "--work", tmp_path / "work")
    code, _, err = call(*words, "--work", tmp_path / "work")
    assert code == 0
    assert err.count("(from an earlier run)") == len(ALWAYS)
    code, _, err = call(
        "bench", tmp_path / "small.yaml", "--data", tmp_path / "gone", "--out", tmp_path / "out2"
    )
    assert code == 2
    assert "none of its slices is here" in err


def test_bench_lists_its_tables(call: Any) -> None:
    code, out, err = call("bench")
    assert (code, err) == (0, "")
    assert "stofm-1-dlpfc" in out
    assert "celltype-merfish" in out


# Bad input: one line, exit code 2, nothing written.


def nan(adata: Any) -> None:
    adata.obsm[KEY][3, 1] = np.nan


def one_class(adata: Any) -> None:
    adata.obs["region"] = "a"


def alone(adata: Any) -> None:
    adata.obs["region"] = ["b", *["a"] * (adata.n_obs - 1)]


def unnormalized(adata: Any) -> None:
    adata.obsm["proportions"][7] *= 1.5


PROBE = ("--use-rep", KEY, "--label", "region")


@pytest.mark.parametrize(
    ("change", "verb", "words", "said"),
    [
        (nan, "probe", PROBE, "not finite, in 1 of 200 cells"),
        (nan, "domains", ("--use-rep", KEY, "-k", 3), "not finite, in 1 of 200 cells"),
        (one_class, "probe", PROBE, "one class, 'a'"),
        (one_class, "domains", ("--use-rep", KEY, "-k", 3, "--label", "region"), "one class, 'a'"),
        (alone, "probe", PROBE, "too rare to be scored: b"),
        (
            unnormalized,
            "deconvolve",
            ("--use-rep", KEY),
            "sum to one within 0.001; 1 of 200 rows do not",
        ),
    ],
)
def test_slices_that_cannot_be_used(
    refused: Any, spoilt: Any, change: Any, verb: str, words: tuple[str, ...], said: str
) -> None:
    assert said in refused(verb, spoilt(change), *words)


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        ("probe", ("--use-rep", KEY, "--label", "reigon"), "Did you mean 'region'?"),
        ("probe", ("--use-rep", KEY), "one thing only: label="),
        ("probe", ("--use-rep", "X_t3", "--label", "region"), "obsm has no 'X_t3'"),
        ("probe", ("--use-rep", f"{KEY}:own", "--label", "region"), "it is one block"),
        ("domains", ("--use-rep", KEY, "-k", 201), "the number of cells, 200"),
        ("domains", ("--use-rep", KEY, "-k", 3, "--label", "reigon"), "obs has no column 'reigon'"),
        ("deconvolve", ("--use-rep", KEY, "--proportions", "shares"), "obsm has no 'shares'"),
        ("impute", ("--model", "pca", "--gene", "GENE_X"), "GENE_X"),
        ("impute", ("--model", "pca", "--n-genes", 60), "60"),
        ("impute", ("--model", "nonsense"), "there is no baseline 'nonsense'"),
        (
            "finetune",
            ("--model", "gone", "--label", "region"),
            "gone does not exist; it must be a checkpoint",
        ),
    ],
)
def test_wishes_that_cannot_be_met(
    refused: Any, files: list[Path], verb: str, words: tuple[Any, ...], said: str
) -> None:
    assert said in refused(verb, files[0], *words)


def test_bad_labels_stop_fine_tuning_before_it_begins(
    refused: Any, files: list[Path], checkpoint: Path
) -> None:
    given = ("finetune", files[0], "--model", checkpoint)
    assert "obs has no column 'reigon'" in refused(*given, "--label", "reigon")
    assert "must be at least 1" in refused(*given, "--label", "region", "--epochs", 0)
    both = ("finetune", *files, "--model", checkpoint)
    assert "pass --test, or one slice" in refused(*both, "--label", "region")


def test_only_stofm_is_fine_tuned(
    refused: Any, files: list[Path], tiny_model: Any, tmp_path: Path
) -> None:
    alone = tiny_model().cell_model().save_pretrained(tmp_path / "cells")
    assert "only SToFM can be fine-tuned" in refused(
        "finetune", files[0], "--model", alone, "--label", "region"
    )


def test_an_unknown_table_and_unknown_models(refused: Any) -> None:
    assert "Did you mean 'celltype-merfish'?" in refused("bench", "celltype-merfsh")
    assert "--models magic" in refused(
        "bench", "celltype-merfish", "--models", "magic", "--data", "/"
    )


@pytest.mark.parametrize("verb", ["probe", "deconvolve", "impute"])
def test_several_slices_need_one_to_be_scored_on(
    refused: Any, files: list[Path], verb: str
) -> None:
    more = ("--model", "pca") if verb == "impute" else ("--use-rep", KEY)
    said = refused(verb, *files, *more, *(("--label", "region") if verb == "probe" else ()))
    assert "there are 2 slices; pass --test, or one slice" in said


def test_an_input_is_never_overwritten(call: Any, files: list[Path]) -> None:
    before = files[0].read_bytes()
    folder = files[0].parent
    code, _, err = call("domains", files[0], "--use-rep", KEY, "-k", 3, "--out", folder)
    assert code == 2
    assert "would overwrite its own input" in err
    code, _, err = call(
        "probe", files[1], *PROBE, "--head", "linear", "--out", folder, "--predict", files[0]
    )
    assert code == 2
    assert "would overwrite its own input" in err
    assert files[0].read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["s0.h5ad", "s1.h5ad"]


def test_a_slice_to_annotate_that_is_not_there(refused: Any, files: list[Path]) -> None:
    assert "gone.h5ad does not exist" in refused(
        "probe", files[0], *PROBE, "--predict", "gone.h5ad"
    )


def test_an_out_folder_that_cannot_be_written(call: Any, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for words in (
        ("domains", files[0], "--use-rep", KEY, "-k", 3),
        ("probe", files[0], *PROBE, "--head", "linear"),
        ("reconstruct", files[0], "--model", "gone"),
        ("bench", "celltype-merfish"),
    ):
        code, _, err = call(*words, "--out", tmp_path / "file")
        assert code == 2
        assert "file" in err
        assert "Traceback" not in err
