"""Tasks on AnnDatas with several sections: refused, or each section by itself."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError
from terrazzo.tasks.by_section import joined


@pytest.fixture
def both() -> AnnData:
    """Two sections on top of each other, with an embedding and labels, rows mixed."""
    rng = np.random.default_rng(0)
    parts = {}
    for name, n in (("A", 160), ("B", 120)):
        region = rng.integers(0, 3, n)
        one = AnnData(sp.csr_matrix(rng.poisson(2 + region[:, None], (n, 12)).astype(np.float32)))
        one.var_names = [f"GENE{i}" for i in range(12)]
        one.obsm["X_m"] = (rng.normal(size=(n, 5)) + 3 * region[:, None]).astype(np.float32)
        one.obsm["spatial"] = rng.uniform(0, 200, (n, 2))
        shares = rng.dirichlet([1, 1], n)
        one.obsm["proportions"] = shares.astype(np.float32)
        one.obs["region"] = np.array(["x", "y", "z"])[region]
        parts[name] = one
    whole = ad.concat(parts, label="sample", index_unique="-")
    whole.uns["technology"] = "MERFISH"
    return whole[rng.permutation(whole.n_obs)].copy()


def alone(both: AnnData, name: str) -> AnnData:
    return both[both.obs["sample"] == name].copy()


OPTIONS: dict[str, Any] = {"use_rep": "X_m", "progress": False}


def run(verb: str, data: Any, **more: Any) -> Any:
    tasks = tz.tasks
    if verb == "domains":
        return tasks.domains(data, n_domains=3, **OPTIONS, **more)
    if verb == "evaluate_domains":
        return tasks.evaluate_domains(data, label="region", seeds=2, **OPTIONS, **more)
    if verb == "probe":
        return tasks.probe(data, label="region", head="knn", runs=1, **OPTIONS, **more)
    if verb == "fit_probe":
        return tasks.fit_probe(data, label="region", head="knn", **OPTIONS, **more)
    if verb == "deconvolve":
        return tasks.deconvolve(data, head="linear", runs=1, **OPTIONS, **more)
    if verb == "hide_genes":
        return tasks.hide_genes(data, 3, **more)
    if verb == "fit_image_to_gene":
        return tasks.fit_image_to_gene(data, use_rep="X_m", genes=3, **more)
    return tasks.reconstruct(
        data, size=2, n_genes=4, repeats=2, bin_um=20.0, progress=False, **more
    )


VERBS = (
    "domains",
    "evaluate_domains",
    "probe",
    "fit_probe",
    "deconvolve",
    "hide_genes",
    "fit_image_to_gene",
    "reconstruct",
)


@pytest.mark.case(
    "A",
    given="A task on an AnnData with several sections that overlap",
    gets="Refused as by embed; by `slice_key=` each section is clustered, hidden, scored by itself",
)
@pytest.mark.parametrize("verb", VERBS)
def test_refused_without_a_key(verb: str, both: AnnData) -> None:
    with pytest.raises(InputError, match=r"sample'\] tells 2 sections apart"):
        run(verb, both)
    assert "X_m_domain" not in both.obs
    run(verb, both, slice_key="sample")


def test_domains_are_those_of_each_section(both: AnnData) -> None:
    run("domains", both, slice_key="sample")
    for name in ("A", "B"):
        one = alone(both, name)
        expected = run("domains", one.copy()).obs["X_m_domain"]
        assert (one.obs["X_m_domain"].astype(str) == expected.astype(str)).all()
    assert both.uns["terrazzo"]["X_m_domain"]["slice_key"] == "sample"
    assert list(both.obs["X_m_domain"].cat.categories) == ["0", "1", "2"]


@pytest.mark.parametrize("verb", ["evaluate_domains", "probe", "deconvolve", "reconstruct"])
def test_scores_are_those_of_each_section(verb: str, both: AnnData) -> None:
    result = run(verb, both, slice_key="sample")
    for name in ("A", "B"):
        expected = run(verb, alone(both, name))
        of_part = result.metrics[result.metrics["slice"] == name].drop(columns="slice")
        assert of_part.reset_index(drop=True).equals(expected.metrics)
        rows = result.predictions[result.predictions["slice"] == name].drop(columns="slice")
        columns = list(expected.predictions)  # of other sections other genes may be predicted
        assert rows[columns].equals(expected.predictions)
    assert set(result.config["slices"]) == {"A", "B"}
    assert result.config["slice_key"] == "sample"


def test_test_slices_are_split_too(both: AnnData) -> None:
    result = run("probe", both, test=both, slice_key="sample")
    training = [alone(both, "A"), alone(both, "B")]
    expected = run("probe", training, test=alone(both, "B"))
    of_part = result.metrics[result.metrics["slice"] == "B"].drop(columns="slice")
    assert of_part.reset_index(drop=True).equals(expected.metrics)


def test_results_can_be_saved(both: AnnData, tmp_path: Any) -> None:
    result = run("probe", both, slice_key="sample")
    result.save(tmp_path)
    assert tz.tasks.TaskResult.load(tmp_path).metrics.equals(result.metrics)
    with pytest.raises(InputError, match="no section"):
        joined({}, "sample")


def test_image_to_gene_names_sections(both: AnnData) -> None:
    result = tz.tasks.image_to_gene(
        both, use_rep="X_m", genes=3, test=both, runs=1, progress=False, slice_key="sample"
    )
    assert set(result.metrics["slice"]) == {"A", "B"}


def test_keys_in_place_of_arrays(both: AnnData) -> None:
    vectors = both.obsm["X_m"]
    with pytest.raises(ConfigError, match="use_rep must be a key"):
        tz.tasks.probe(both, use_rep=vectors, label="region", slice_key="sample")


def test_all_as_one(both: AnnData) -> None:
    assert run("hide_genes", both, slice_key="none").visible.n_obs == both.n_obs
    for verb in VERBS:
        run(verb, both, slice_key="none")


def test_drawn_side_by_side(both: AnnData) -> None:
    figure = tz.plot.spatial(both, color="region", slice_key="sample")
    titles = [axes.get_title() for axes in figure.axes]
    assert "A: region" in titles
    assert "B: region" in titles
