"""The verbs regions, types, annotate and data, and baselines in embed: from files to files, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from terrazzo.files import read_record

pytestmark = pytest.mark.usefixtures("quiet_figures")
QUICK = ("--seeds", 1, "--bootstraps", 0)
KEY = "terrazzo_region"
ALWAYS = {
    "regions.csv",
    "markers.csv",
    "shares.csv",
    "names.csv",
    "levels.parquet",
    "projection.json",
    "projection.safetensors",
    "regions.png",
    "agreement.png",
    "markers.png",
    "regions.json",
}


@pytest.fixture
def files(simulated: Callable[..., AnnData], tmp_path: Path) -> list[Path]:
    paths = []
    for seed, name in ((1, "a"), (2, "b")):
        adata = simulated(250, 120, layout="visium", n_regions=4, seed=seed, donor=f"donor_{seed}")
        adata.obs["arm"] = "old" if seed == 1 else "young"
        path = tmp_path / f"{name}.h5ad"
        adata.write_h5ad(path)
        paths.append(path)
    return paths


def times(folder: Path) -> dict[str, int]:
    """Return when each file was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_one_slice(call: Any, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("regions", files[0], "--out", out, *QUICK, "-k", 4, "--donor", "donor")
    code, told, err = call(*command)
    assert (code, err) == (0, "")
    lines = told.splitlines()
    assert lines[0].startswith("regions from ")
    assert "no weights were named" in lines[0]
    assert lines[1] == "4 regions."
    assert "R1" in told
    names = {path.name for path in out.iterdir()}
    assert names == ALWAYS | {"a.h5ad", "report.html"}
    written = anndata.read_h5ad(out / "a.h5ad")
    assert written.obs[KEY].nunique() == 4
    assert written.obs[f"{KEY}_agreement"].between(0, 1).all()
    assert (written.X != anndata.read_h5ad(files[0]).X).nnz == 0
    table = pd.read_csv(out / "regions.csv")
    assert list(table["region"]) == list(written.obs[KEY].cat.categories)
    levels = pd.read_parquet(out / "levels.parquet")
    assert list(levels["cell"]) == list(written.obs_names)
    assert (levels["level_4"] == written.obs[KEY].cat.codes.to_numpy()).all()
    assert set(pd.read_csv(out / "markers.csv")["region"]) <= set(table["region"])
    assert list(pd.read_csv(out / "names.csv")) == ["region", "name"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert KEY in page
    assert "marker genes" in page
    record = read_record(out / "regions.json")
    assert record["finished"]
    assert set(record["files"]) == names - {"regions.json"}

    before = times(out)
    code, again, err = call(*command)
    assert (code, err) == (0, "")
    assert again.splitlines()[: len(lines) - 1] == lines[:-1]
    assert "left alone" in again
    assert times(out) == before
    (out / "shares.csv").unlink()
    code, again, _ = call(*command)
    assert "left alone" not in again
    assert (out / "shares.csv").exists()
    code, again, _ = call(*command[:-4], "-k", 3, "--no-report")
    assert pd.read_csv(out / "regions.csv").shape[0] == 3


def test_names_that_a_person_edited(call: Any, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("regions", files[0], "--out", out, *QUICK, "-k", 3, "--no-report")
    assert call(*command)[0] == 0
    names = pd.read_csv(out / "names.csv")
    assert list(names["region"]) == ["R1", "R2", "R3"]
    names.loc[0, "name"] = "white matter"
    names.to_csv(out / "names.csv", index=False)
    code, told, _ = call(*command)
    assert code == 0
    assert "was edited" in told
    assert "--names" in told
    code, told, _ = call(*command, "--names", out / "names.csv")
    assert code == 0
    assert "white matter" in set(anndata.read_h5ad(out / "a.h5ad").obs[KEY])
    assert "white matter" in set(pd.read_csv(out / "names.csv")["name"])
    assert "white matter" in told
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("region,name\nR7,tumor\n")
    code, _, err = call(*command, "--names", wrong)
    assert code == 2
    assert "there is no region 'R7'" in err
    assert "white matter" in set(anndata.read_h5ad(out / "a.h5ad").obs[KEY])


@pytest.mark.filterwarnings("ignore:the seeds disagree")
def test_several_slices_and_a_later_one(
    call: Any, files: list[Path], simulated: Callable[..., AnnData], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, told, _ = call(
        "regions", *files, "--out", out, *QUICK, "-k", 4, "--group", "arm", "--no-report"
    )
    assert code == 0
    assert "one donor is too few" in told
    first, second = (anndata.read_h5ad(out / f"{name}.h5ad") for name in "ab")
    assert list(first.obs[KEY].cat.categories) == list(second.obs[KEY].cat.categories)
    assert list(first.uns[f"{KEY}_colors"]) == list(second.uns[f"{KEY}_colors"])
    assert set(pd.read_csv(out / "shares.csv")["slice"]) == {"a", "b"}
    assert set(pd.read_csv(out / "comparison.csv")["group"]) == {"old", "young"}
    assert not (out / "report.html").exists()
    later = tmp_path / "later.h5ad"
    simulated(200, 120, layout="visium", n_regions=4, seed=3).write_h5ad(later)
    code, told, err = call("regions", later, "--to", out, "--out", tmp_path / "l", "--no-report")
    assert (code, err) == (0, "")
    assert told.startswith("regions from an earlier answer")
    found = anndata.read_h5ad(tmp_path / "l" / "later.h5ad")
    assert list(found.obs[KEY].cat.categories) == list(first.obs[KEY].cat.categories)
    assert not (tmp_path / "l" / "levels.parquet").exists()


@pytest.mark.filterwarnings("ignore:the seeds disagree")
def test_sections_of_one_file(call: Any, files: list[Path], tmp_path: Path) -> None:
    parts = {path.stem: anndata.read_h5ad(path) for path in files}
    both = anndata.concat(parts, label="section", index_unique="-")
    both.uns["technology"] = "Visium"
    both.write_h5ad(tmp_path / "both.h5ad")
    out = tmp_path / "out"
    code, told, _ = call(
        "regions", tmp_path / "both.h5ad", "--slice-key", "section", "--out", out, *QUICK, "-k", 3
    )
    assert code == 0, told
    written = anndata.read_h5ad(out / "both.h5ad")
    assert written.n_obs == 500
    assert written.obs[KEY].notna().all()
    assert pd.read_csv(out / "shares.csv")["slice"].nunique() == 2
    assert (out / "report.html").exists()


@pytest.mark.filterwarnings("ignore:the seeds disagree")
def test_types_beside_regions(call: Any, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("regions", files[0], "--out", out, *QUICK, "-k", 3, "--no-report")[0] == 0
    code, _, err = call("types", files[0], "--out", out, *QUICK, "-k", 3)
    assert code == 2
    assert "--overwrite" in err
    code, _, err = call("types", out / "a.h5ad", "--out", out, *QUICK, "-k", 3)
    assert code == 2
    assert "overwrite its own input" in err
    types = tmp_path / "types"
    code, told, _ = call(
        "types", out / "a.h5ad", "--out", types, *QUICK, "-k", 3, "--no-report", "--model", "z50"
    )
    assert code == 0
    assert told.startswith("types from Z50")
    written = anndata.read_h5ad(types / "a.h5ad")
    assert {KEY, "terrazzo_type", "terrazzo_type_agreement"} <= set(written.obs)
    assert (types / "types.csv").exists()


def test_annotate(call: Any, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    atlas = anndata.read_h5ad(files[1])
    del atlas.obsm["spatial"]
    atlas.write_h5ad(tmp_path / "atlas.h5ad")
    command = ("annotate", files[0], "--label", "region", "--out", out, "--reference")
    code, told, err = call(*command, files[1], "--reference", tmp_path / "atlas.h5ad")
    assert (code, err) == (0, "")
    assert told.startswith("labels from the cell alone")
    assert "held-out accuracy" in told
    written = anndata.read_h5ad(out / "a.h5ad")
    assert "terrazzo_label" in written.obs
    for name in ("shares.csv", "confused.csv", "scores.csv", "labels.png", "report.html"):
        assert (out / name).exists()
    code, told, _ = call(*command, files[1], "--reference", tmp_path / "atlas.h5ad")
    assert "left alone" in told
    code, told, _ = call(*command, files[1])
    assert "left alone" not in told
    assert call(*command, files[1], "--no-common-genes", "--no-copies")[0] == 0
    code, _, err = call(*command, files[1], "--threshold", "1.5")
    assert code == 2
    assert "between 0 and 1" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-k", "many"), "-k is 'many'"),
        (("-k", "0"), "whole number from 1"),
        (("-k", "251"), "pass a number of at most 250"),
        (("--to", "."), "lacks projection.json"),
        (("--model", "t9"), "t9"),
        (("--group", "cell"), "must have one value of 'cell'"),
        (("--key-added", "region"), "terrazzo did not write"),
        (("--names", "missing.csv"), "not readable"),
    ],
)
def test_what_cannot_be_done(
    refused: Any, files: list[Path], words: tuple[str, ...], message: str
) -> None:
    assert message in refused("regions", files[0], *QUICK, *words)


def test_slices_that_cannot_be_used(refused: Any, files: list[Path], tmp_path: Path) -> None:
    few = anndata.read_h5ad(files[0])[:20].copy()
    few.write_h5ad(tmp_path / "few.h5ad")
    assert "20 cells are too few" in refused("regions", tmp_path / "few.h5ad", *QUICK)
    bare = anndata.read_h5ad(files[0])
    del bare.obsm["spatial"]
    bare.write_h5ad(tmp_path / "bare.h5ad")
    assert "bare.h5ad: " in refused("regions", files[0], tmp_path / "bare.h5ad", *QUICK)
    assert "does not exist" in refused("regions", tmp_path / "none.h5ad", *QUICK)


def change(path: Path, name: str) -> Path:
    """Write a slice that cannot be answered beside a good one."""
    adata = anndata.read_h5ad(path)
    if name == "alike":
        adata.X = sparse.csr_matrix(np.tile(adata.X[0].toarray(), (adata.n_obs, 1)))
    elif name == "bare":
        adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    elif name == "gene":
        adata = adata[:, :1].copy()
    elif name == "place":
        adata.obsm["spatial"][:] = 1.0
    elif name == "foreign":
        adata.var_names = [f"OTHER{number}" for number in range(adata.n_vars)]
        adata.var["ensembl_id"] = adata.var_names
    elif name == "once":
        adata.obs["label"] = [f"label {number}" for number in range(adata.n_obs)]
    target = path.with_name(f"{name}.h5ad")
    adata.write_h5ad(target)
    return target


@pytest.mark.parametrize("verb", ["regions", "types"])
def test_slices_of_which_no_answer_comes(refused: Any, files: list[Path], verb: str) -> None:
    good, other = files
    told = refused(verb, change(good, "alike"), *QUICK, "-k", 3)
    assert "alike" in told or "varies" in told
    assert "has no counts" in refused(verb, change(good, "bare"), *QUICK, "-k", 3)
    assert "fewer than two genes" in refused(verb, change(good, "gene"), *QUICK, "-k", 3)
    foreign = change(other, "foreign")
    assert "genes in common" in refused(verb, good, foreign, *QUICK, "-k", 3)
    if verb == "regions":
        assert "at one place" in refused(verb, change(good, "place"), *QUICK, "-k", 3)


def test_references_that_do_not_bear_it(refused: Any, files: list[Path]) -> None:
    good, other = files
    words = ("annotate", good, "--label", "region", "--reference")
    assert "0 genes in common" in refused(*words, change(other, "foreign"))
    assert "has no counts" in refused(*words, change(other, "bare"))
    once = change(other, "once")
    told = refused("annotate", good, "--label", "label", "--reference", once)
    assert "labels with at least 10 cells" in told
    assert "no obs column 'regio'" in refused(
        "annotate", good, "--label", "regio", "--reference", other
    )


@pytest.mark.filterwarnings("ignore:the seeds disagree")
def test_results_and_names_that_do_not_fit(
    call: Any, refused: Any, files: list[Path], tmp_path: Path
) -> None:
    good, other = files
    result = tmp_path / "result"
    command = ("regions", good, *QUICK, "-k", 3, "--no-report")
    assert call(*command, "--out", result)[0] == 0
    foreign = change(other, "foreign")
    assert "has 0 of the 120 genes" in refused("regions", foreign, "--to", result)
    assert "has regions, not types" in refused("types", other, "--to", result)
    assert "without k=" in refused("regions", other, "--to", result, "-k", 3)
    names = tmp_path / "names.csv"
    for text, message in (
        ("region,name\nR9,tumor\n", "there is no region 'R9'"),
        ("region,name\nR1,tumor\nR2,tumor\n", "one name"),
        ("region,name\nR1,tumor\nR1,stroma\n", "twice"),
        ("region\nR1\n", "two columns"),
    ):
        names.write_text(text)
        assert message in refused(*command, "--names", names)
    file = tmp_path / "file"
    file.write_text("mine")
    code, told, err = call(*command, "--out", file)
    assert (code, told) == (2, "")
    assert "is a file" in err
    assert file.read_text() == "mine"


@pytest.mark.filterwarnings("ignore:the seeds disagree")
@pytest.mark.case(
    "G",
    given="`regions`, `types` or `annotate` into the folder with the answer of other slices",
    gets="Refused, with both; `--overwrite` replaces. Other settings for the same slices replace what was there",
)
def test_the_answer_of_other_slices_is_kept(call: Any, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("--out", out, *QUICK, "-k", 3)
    assert call("types", files[0], *command)[0] == 0
    assert (out / "report.html").exists()
    before = times(out)
    for sources in (files, files[1:]):
        code, told, err = call("types", *sources, *command, "--no-report")
        assert (code, told) == (2, "")
        assert "has the types of other slices" in err
        assert times(out) == before
    code, _, err = call("types", files[0], "--out", out, *QUICK, "-k", 2, "--no-report")
    assert code == 0, err
    assert not (out / "report.html").exists()  # it showed what is not there any more
    assert call("types", *files, *command, "--no-report", "--overwrite")[0] == 0
    assert pd.read_csv(out / "shares.csv")["slice"].nunique() == 2


def test_a_file_of_another_origin_is_kept(call: Any, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "markers.csv").write_text("mine")
    command = ("regions", files[0], "--out", out, *QUICK, "-k", 3, "--no-report")
    code, _, err = call(*command)
    assert code == 2
    assert "markers.csv exists" in err
    assert (out / "markers.csv").read_text() == "mine"
    assert [path.name for path in out.iterdir()] == ["markers.csv"]
    assert call(*command, "--overwrite")[0] == 0
    assert (out / "markers.csv").read_text() != "mine"


def test_embed_with_a_baseline(call: Any, files: list[Path], tmp_path: Path) -> None:
    import terrazzo as tz

    out = tmp_path / "out"
    command = ("embed", *files, "--model", "t2", "--out", out)
    code, told, err = call(*command)
    assert (code, err) == (0, "")
    slices = [anndata.read_h5ad(path) for path in files]
    baseline = tz.Baseline("t2").fit(slices)
    for path, adata in zip(files, slices, strict=True):
        baseline.embed(adata)
        written = anndata.read_h5ad(out / path.name)
        assert np.array_equal(written.obsm["X_t2"], adata.obsm["X_t2"])
    code, told, _ = call(*command)
    assert told.count("left alone") == 2
    code, told, _ = call("embed", files[0], "--model", "t2", "--out", out)
    assert "left alone" not in told  # fitted on other slices
    code, _, err = call("embed", files[0], "--model", "t2", "--out", out, "--halo", "3")
    assert code == 2
    assert "--halo belongs to" in err
    code, told, _ = call("embed", files[0], "--model", "pca", "--out", tmp_path / "d", "--dry-run")
    assert code == 0
    assert "dry run" in told
    bad = tmp_path / "bad.h5ad"
    bad.write_bytes(b"nothing")
    code, told, err = call("embed", files[0], bad, "--model", "pca", "--out", tmp_path / "e")
    assert code == 2
    assert "1 of 2 slices could not be used" in err
    assert (tmp_path / "e" / "a.h5ad").exists()


def test_data(call: Any, files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "dlpfc"
    folder.mkdir(parents=True)
    files[0].rename(folder / "151673.h5ad")
    code, told, err = call("data", "list", "--data", tmp_path / "data")
    assert (code, err) == (0, "")
    row = next(line for line in told.splitlines() if line.startswith("dlpfc"))
    assert "1/12" in row
    assert "Visium, human, region" in row
    code, _, err = call("data", "get", "dlpfcc")
    assert code == 2
    assert "Did you mean 'dlpfc'" in err
    code, _, err = call("data", "get", "hesta_embryo", "--out", tmp_path)
    assert code == 2
    assert "get it from" in err
    code, _, err = call("data", "get", "st_mob", "--out", tmp_path)
    assert code == 2
    assert "nobody has checked" in err
    code, _, err = call("data", "get", "dlpfc", "--out", tmp_path, "--sha256", "0" * 64)
    assert code == 2
    assert "--file" in err
