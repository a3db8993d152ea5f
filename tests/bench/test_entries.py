"""Entries of a table: baselines always, weights that were given, and why the others are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from terrazzo.bench.entries import ALWAYS, VISION_MODELS, Entry, representations, resolve
from terrazzo.bench.protocols import Part
from terrazzo.bench.samples import KEY, Sample, without_labels
from terrazzo.errors import CheckpointError, ConfigError, InputError
from terrazzo.models.baselines import KINDS
from terrazzo.systems.stofm.cell_model import CellModel


@pytest.fixture
def checkpoint(tiny_model: Any, tmp_path: Path) -> Path:
    return tiny_model().save_pretrained(tmp_path / "checkpoint")


def called(systems: list[Entry], title: str) -> list[Entry]:
    return [s for s in systems if s.title == title]


def test_baselines_are_always_there_and_once() -> None:
    systems = resolve(["t1", "expression"], ["t1"])
    titles = [s.title for s in systems]
    assert titles == [KINDS[n].title for n in KINDS if n in {*ALWAYS, "expression"}]
    assert all(s.fit is not None and not s.missing for s in systems)
    assert set(ALWAYS) == set(KINDS) - {"expression", "pca-concat", "pearson"}
    assert [s.title for s in systems if s.joint] == [KINDS["t1-half"].title]


def test_baselines_share_one_fit_and_each_has_vectors_of_its_own(
    simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from terrazzo.bench import entries
    from terrazzo.models.baselines import Baseline, fit_baselines

    fits = []
    monkeypatch.setattr(
        entries,
        "fit_baselines",
        lambda names, slices: fits.append(names) or fit_baselines(names, slices),
    )
    slices, adata = [simulated(150, 60)], simulated(150, 60)
    for system in resolve([]):
        system.fit(slices)(adata)
        alone = next(name for name in KINDS if KINDS[name].title == system.title)
        expected = Baseline(alone).fit(slices).embed(simulated(150, 60), key_added="X").obsm["X"]
        np.testing.assert_allclose(adata.obsm[KEY], expected, rtol=1e-4, atol=1e-5)
    assert len(fits) == 2  # one of those that may see the scored slice
    resolve([])[0].fit([simulated(150, 60)])
    assert len(fits) == 3


def test_one_baseline_that_fails_does_not_take_the_others_with_it(
    simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from terrazzo.bench import entries
    from terrazzo.models.baselines import fit_baselines

    def fail(names: list[str], slices: list[AnnData]) -> Any:
        if "pearson" in names:
            raise InputError("no residuals")
        return fit_baselines(names, slices)

    monkeypatch.setattr(entries, "fit_baselines", fail)
    slices, failed = [simulated(150, 60)], []
    for system in resolve(["pearson"]):
        try:
            system.fit(slices)
        except InputError:
            failed.append(system.title)
    assert failed == [KINDS["pearson"].title]


@pytest.mark.parametrize("named", [True, False])
def test_a_checkpoint_and_its_cell_encoder(
    named: bool, checkpoint: Path, simulated: Any, tiny_model: Any
) -> None:
    given = [f"stofm={checkpoint}", *([f"cell-encoder={checkpoint}"] if named else [])]
    systems = resolve(["stofm", "cell-encoder"], given)
    (whole,), (alone,) = (
        called(systems, "SToFM (untrained)"),
        called(systems, "Cell encoder alone (untrained)"),
    )
    assert whole.model is not None
    assert isinstance(alone.model, CellModel)
    adata = simulated(80, 60)
    whole.fit([])(adata)
    np.testing.assert_array_equal(
        adata.obsm[KEY], tiny_model().embed(simulated(80, 60), progress=False).obsm["X_stofm"]
    )
    alone.fit([])(adata)
    assert adata.obsm[KEY].shape == (80, 16)
    assert not [s for s in systems if s.missing]


def test_a_checkpoint_of_st_as_images(simulated: Any, tmp_path: Path) -> None:
    import terrazzo as tz

    adata = simulated(80, 60)
    model = tz.STImage("tiny", tz.Vocabulary.from_slices([tz.Slice.from_anndata(adata)]))
    folder = model.save_pretrained(tmp_path / "checkpoint")
    (found,) = called(resolve(["stimage"], [f"stimage={folder}"]), "ST as images (untrained)")
    assert isinstance(found.model, tz.STImage)
    assert found.fixed
    assert hasattr(found.model, "reconstruct")


def test_an_embedding_that_is_there_already(simulated: Any, tiny_model: Any) -> None:
    adata = tiny_model().embed(simulated(80, 60), progress=False)
    (given,) = called(resolve(["scgpt"], ["scgpt=obsm:X_stofm"]), "scGPT")
    given.fit([])(adata)
    np.testing.assert_array_equal(adata.obsm[KEY], adata.obsm["X_stofm"])
    assert given.stored
    assert representations(adata) == {"": KEY}
    with pytest.raises(InputError, match="obsm has no 'X_gone'"):
        resolve([], ["mine=obsm:X_gone"])[-1].fit([])(adata)


def test_named_blocks_are_scored_too_and_an_older_record_is_forgotten(simulated: Any) -> None:
    import json

    adata = simulated(50, 60)
    adata.obsm["X_two"] = np.random.default_rng(0).normal(size=(50, 6))
    adata.obsm["X_one"] = adata.obsm["X_two"][:, :4]
    details = json.dumps({"blocks": {"own": [0, 2], "niche": [2, 6]}})
    adata.uns["terrazzo"] = {"X_two": {"model": "theirs", "details": details}}
    two, one = resolve([], ["a=obsm:X_two", "b=obsm:X_one"])[-2:]
    two.fit([])(adata)
    assert representations(adata) == {
        " [own ; niche]": f"{KEY}:all",
        ", own block": f"{KEY}:own",
        ", niche block": f"{KEY}:niche",
    }
    one.fit([])(adata)
    assert representations(adata) == {"": KEY}


def test_who_is_missing_says_why() -> None:
    systems = resolve(["stofm", "stimage", "stalign", "clip", "novae", "stofm"])
    reasons = {s.title: s.missing for s in systems if s.missing}
    assert reasons == {
        "SToFM": "no weights were given (--models stofm=FOLDER)",
        "ST as images": "no weights were given (--models stimage=FOLDER)",
        "ST-Align": "no weights were given (--models stalign=FOLDER)",
        "CLIP": "no weights were given (--models clip=FOLDER of a transformers model)",
        "novae": "not part of terrazzo (--models novae=obsm:KEY takes its vectors)",
    }
    assert len(systems) == len(ALWAYS) + 5
    assert {"clip", "uni"} <= set(VISION_MODELS)


def test_st_align_is_three_systems_and_a_vision_model_is_a_frozen_encoder(
    histology: Any, align_model: Any, tmp_path: Path
) -> None:
    model = align_model()
    folder, eye = model.save_pretrained(tmp_path / "align"), tmp_path / "eye"
    model.module.image_encoder.backbone.save_pretrained(eye)
    found = resolve(["stalign", "uni"], [f"stalign={folder}", f"uni={eye}"])
    both, image, genes = (
        called(found, f"ST-Align (untrained){more}")[0]
        for more in ("", ", image only", ", genes only")
    )
    (uni,) = called(found, "UNI")
    assert [s.reads for s in (both, image, genes, uni)] == ["both", "image", "genes", "image"]
    adata = histology(50, image_px=280).copy()
    for system, modality in ((both, "both"), (image, "image"), (genes, "genes")):
        system.fit([])(adata)
        expected = model.embed(
            histology(50, image_px=280).copy(), modality=modality, progress=False
        ).obsm["X_stalign"]
        np.testing.assert_allclose(adata.obsm[KEY], expected, rtol=1e-5, atol=1e-6)
        assert len(representations(adata)) == 3
    uni.fit([])(adata)
    assert adata.obsm[KEY].shape == (50, 64)
    assert len(representations(adata)) == 1


def test_weights_for_a_part_alone(tiny_model: Any, tmp_path: Path) -> None:
    folder = tiny_model().save_pretrained(tmp_path / "m")
    found = called(
        resolve(["stofm"], [f"stofm@A={folder}", f"stofm@B={folder}"]), "SToFM (untrained)"
    )
    assert [s.part for s in found] == ["A", "B"]
    parts = [
        Part("A", "d", "t"),
        Part("b", "d", "t", patient="B"),
        Part("C", "d", "t", patient="c"),
    ]
    assert [[s.serves(p) for p in parts] for s in found] == [
        [True, False, False],
        [False, True, False],
    ]
    assert not [s for s in resolve(["stofm"], [f"stofm@A={folder}"]) if s.missing]
    for word in ("stofm@=x", "@A=x"):
        with pytest.raises(ConfigError, match="NAME@PART"):
            resolve([], [word])


def test_one_name_twice_is_two_seeds(tiny_model: Any, small_config: Any, tmp_path: Path) -> None:
    import terrazzo as tz

    first = tiny_model()
    second = tz.SToFM(first.config, first.vocabulary, seed=3)
    folders = [m.save_pretrained(tmp_path / f"m{i}") for i, m in enumerate((first, second))]
    given = [f"stofm={folder}" for folder in folders]
    assert len(called(resolve(["stofm"], given), "SToFM (untrained)")) == 2
    with pytest.raises(ConfigError, match="given twice with the same weights"):
        resolve(["stofm"], [given[0], given[0]])
    with pytest.raises(ConfigError, match="given twice with the same weights"):
        resolve([], ["mine=obsm:X_a", "mine=obsm:X_a"])


@pytest.mark.parametrize("word", ["nonsense", "=x", "stofm=", "t5", ""])
def test_nonsense_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="--models"):
        resolve([], [word])


@pytest.mark.parametrize("label", ["pca", "PCA", "T3 (Z20, rings)"])
def test_nobody_takes_a_baselines_name(label: str) -> None:
    with pytest.raises(ConfigError, match="name of a baseline"):
        resolve([], [f"{label}=obsm:X_a"])


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        resolve([], [f"stofm={tmp_path / 'gone'}"])
    with pytest.raises(CheckpointError):
        resolve([], [f"stofm={tmp_path}"])
    with pytest.raises(ConfigError, match="'magic', which is not known"):
        resolve(["magic"])


def test_what_a_system_sees_holds_no_label(simulated: Any) -> None:
    adata = simulated(60, 60)
    adata.obsm["proportions"], adata.obsm["X_a"] = np.ones((60, 1)), np.ones((60, 2))
    adata.uns["proportions_names"] = np.array(["all"], dtype=object)
    adata.obs["array_row"] = 1
    bare = without_labels(adata, {"proportions"})
    assert list(bare.obs) == ["array_row"]
    assert set(bare.obsm) == {"spatial", "X_a"}
    assert "proportions_names" not in bare.uns
    assert {"region", "cell_type"} <= set(adata.obs)
    assert "proportions" in adata.obsm


def test_a_picture_is_shared_and_never_copied(histology: Any) -> None:
    adata = histology().copy()
    bare = without_labels(adata, {"proportions"})
    assert bare.uns["spatial"] is adata.uns["spatial"]
    assert "proportions" in adata.obsm
    blind = Sample(adata, bare).blind
    assert blind.X.nnz == 0
    assert blind.uns["spatial"] is adata.uns["spatial"]
    assert list(blind.var_names) == list(adata.var_names)
    assert adata.X.nnz > 0
