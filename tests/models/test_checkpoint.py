"""Checkpoint folders: what is saved comes back, and what is damaged or foreign is refused with words that help."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import terrazzo as tz
from terrazzo.errors import CheckpointError, ConfigError, OutputError, TerrazzoError
from terrazzo.models import card
from terrazzo.systems.stofm.cell_model import CellModel, CellModelConfig

FILES = ["config.json", "model.safetensors", "vocab.parquet"]


@pytest.fixture
def folder(tiny_model: Any, tmp_path: Path) -> Path:
    return tiny_model().save_pretrained(tmp_path / "checkpoint")


@pytest.fixture(scope="module")
def cell_model(tiny_model: Any) -> Any:
    model = tiny_model()
    return CellModel(CellModelConfig(model.config.cell_encoder), model.vocabulary, seed=1)


def edit(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    header = json.loads(path.read_text())
    change(header)
    path.write_text(json.dumps(header))


def test_round_trip(tiny_model: Any, simulated: Any, folder: Path) -> None:
    model, loaded = tiny_model(), tz.SToFM.from_pretrained(folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, "README.md"])
    assert loaded.fingerprint() == model.fingerprint()
    assert loaded.config == model.config
    assert loaded.provenance == model.provenance
    assert not loaded.trained
    first, second = (
        m.embed(simulated(50), progress=False).obsm["X_stofm"] for m in (model, loaded)
    )
    np.testing.assert_array_equal(first, second)
    assert [p.name for p in folder.parent.iterdir()] == ["checkpoint"]  # no draft is left


def test_the_fingerprint_sees_every_part(tiny_model: Any, folder: Path) -> None:
    loaded = tz.load(folder)
    with torch.no_grad():
        loaded.module.se2.gaussian.stds[3] += 1e-3
    changed = loaded.fingerprint()
    assert changed != tiny_model().fingerprint()
    assert tiny_model(subslice_size=81).fingerprint() != tiny_model().fingerprint()


def test_the_card_says_what_is_inside(tiny_model: Any, folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert "never trained" in text
    assert "60 genes" in text
    model = tiny_model()
    trained = tz.SToFM(
        model.config, model.vocabulary, provenance={"weights": "imported", "source": "somewhere"}
    )
    assert "never trained" not in card.card(trained)
    assert "somewhere" in card.card(trained)


def test_load_picks_the_class(folder: Path, cell_model: Any, tmp_path: Path) -> None:
    assert type(tz.load(folder)) is tz.SToFM
    cells = cell_model.save_pretrained(tmp_path / "cells")
    assert type(tz.load(cells)) is CellModel
    with pytest.raises(CheckpointError, match=r"terrazzo\.load"):
        tz.SToFM.from_pretrained(cells)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    for load in (tz.load, tz.SToFM.from_pretrained):
        with pytest.raises(CheckpointError, match=name):
            load(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_file(folder: Path, name: str, share: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=name):
        tz.load(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"\x00" * 64, b"[1, 2]", b"PAR1 and then some", b"\x80\x04N."])
def test_a_foreign_file(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        tz.load(folder)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; it must be a checkpoint"):
        tz.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file; it must be a checkpoint"):
        tz.load(tmp_path / "file")


def test_a_vocabulary_from_elsewhere(folder: Path, simulated: Any) -> None:
    other = tz.Vocabulary.from_slices(
        [tz.Slice.from_anndata(simulated(seed=3))]
    )  # same genes, other medians
    other.to_parquet(folder / "vocab.parquet")
    with pytest.raises(CheckpointError, match=r"vocab\.parquet is not the vocabulary"):
        tz.load(folder)
    larger = tz.Vocabulary.from_slices([tz.Slice.from_anndata(simulated(150, 90))])
    larger.to_parquet(folder / "vocab.parquet")
    with pytest.raises(CheckpointError):
        tz.load(folder)
    edit(folder, lambda header: header.pop("vocabulary_sha256"))
    with pytest.raises(TerrazzoError, match="tokens"):  # more tokens than embeddings
        tz.load(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.update({"se2.extra": torch.zeros(2)}), r"foreign tensors: se2\.extra"),
        (lambda state: state.pop("se2.gaussian.means"), r"lacks: se2\.gaussian\.means"),
        (
            lambda state: state.update({"se2.gaussian.means": torch.zeros(3)}),
            r"another shape: .*\(3,\) instead of",
        ),
    ],
    ids=["extra", "missing", "shape"],
)
def test_tensors_of_another_model(folder: Path, change: Any, says: str) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=says):
        tz.load(folder)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda h: h["model"]["se2"].update(num_head=4), ConfigError, "Did you mean 'num_heads'"),
        (lambda h: h["model"].update(subslice={}), ConfigError, "Did you mean 'subslices'"),
        (lambda h: h["model"]["se2"].update(num_heads="four"), ConfigError, "type int"),
        (lambda h: h["model"]["se2"].update(num_heads=5), ConfigError, "multiple"),
        (
            lambda h: h["model"]["subslices"].update(geometry="miles"),
            ConfigError,
            "'um', 'published'",
        ),
        (lambda h: h["model"].update(se2=3), ConfigError, "mapping"),
        (lambda h: h.update(format=99), CheckpointError, "format 99"),
        (lambda h: h.pop("format"), CheckpointError, "format None"),
        (lambda h: h.update(model_type="stoform"), CheckpointError, "'stoform'.*stofm"),
        (lambda h: h.pop("model_type"), CheckpointError, "model_type"),
        (lambda h: h.update(color="red"), CheckpointError, "color"),
    ],
)
def test_a_config_that_does_not_say_what_it_must(
    folder: Path, change: Any, error: Any, says: str
) -> None:
    edit(folder, change)
    with pytest.raises(error, match=says):
        tz.load(folder)


def test_the_published_layout_by_mistake(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 32}')
    (tmp_path / "se2transformer.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="terrazzo convert stofm"):
        tz.SToFM.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="terrazzo convert stofm"):
        tz.load(tmp_path)


def test_overwrite_rules(tiny_model: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="overwrite=True"):
        tiny_model().save_pretrained(folder)
    other = tiny_model(subslice_size=55)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="another folder"):
        other.save_pretrained(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert tz.load(folder).fingerprint() == tiny_model().fingerprint()
    (folder / "notes.txt").unlink()
    other.save_pretrained(folder, overwrite=True)
    assert tz.load(folder).fingerprint() == other.fingerprint()

    foreign = tmp_path / "thesis"
    foreign.mkdir()
    tiny_model().save_pretrained(foreign)  # an empty folder may be filled
    shutil.rmtree(foreign)
    foreign.mkdir()
    (foreign / "chapter1.txt").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("x")
    for target in (foreign, file):
        with pytest.raises(OutputError, match="another folder"):
            tiny_model().save_pretrained(target, overwrite=True)
    assert (foreign / "chapter1.txt").read_text() == "years of work"
    assert file.read_text() == "x"


@pytest.mark.parametrize(
    "config", ['{"model_type": "bert", "architectures": ["BertForMaskedLM"]}', "{", "[1]"]
)
def test_another_librarys_download_is_never_replaced(
    tiny_model: Any, tmp_path: Path, config: str
) -> None:
    download = tmp_path / "Geneformer"
    download.mkdir()
    files = {"config.json": config, "model.safetensors": "weights", "README.md": "card"}
    for name, text in files.items():
        (download / name).write_text(text)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="choose another folder"):
            tiny_model().save_pretrained(download, overwrite=overwrite)
    assert {path.name: path.read_text() for path in download.iterdir()} == files


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left")]
)
def test_a_failing_write_leaves_nothing_and_keeps_the_old(
    tiny_model: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    before = tz.load(folder).fingerprint()

    def fail(tensors: Any, path: str, *args: Any, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    for target in (tmp_path / "new", folder):
        with pytest.raises(OutputError, match="nothing was kept"):
            tiny_model(subslice_size=33).save_pretrained(target, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    assert tz.load(folder).fingerprint() == before


def test_a_place_that_cannot_be_written(tiny_model: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        tiny_model().save_pretrained(tmp_path / "file" / "below" / "checkpoint")


def test_a_local_path_never_asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub")
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for source in ("./models", "models/mine", "mine", str(tmp_path / "gone"), "a/b/c"):
        with pytest.raises(CheckpointError):
            tz.load(source)
