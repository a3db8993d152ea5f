"""From files to files: whole or not there, and never done twice."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData
from plain_system import Plain, plain_model

from terrazzo.errors import InputError, OutputError
from terrazzo.files import hash_path
from terrazzo.models.embed_files import embed_files, read_record

OPTIONS: dict[str, Any] = {"progress": False}


@pytest.fixture
def sources(tmp_path: Path, simulated: Any) -> list[Path]:
    folder = tmp_path / "in"
    folder.mkdir()
    paths = [folder / f"slice{i}.h5ad" for i in range(3)]
    for i, path in enumerate(paths):
        simulated(40 + i, seed=i).write_h5ad(path)
    return paths


@pytest.fixture(scope="module")
def plain(simulated: Any) -> Any:
    """Make a model that costs nothing; equal arguments, equal weights."""

    def make(width: int = 4) -> Plain:
        return plain_model(simulated(40, seed=0), width)

    return make


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(model: Any, sources: Any, out: Path, **options: Any) -> list[str]:
    return [d.status for d in embed_files(model, sources, out, **OPTIONS, **options)]


def state(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.iterdir())}


def test_each_slice_is_written_with_its_vectors(plain: Any, sources: list[Path], out: Path) -> None:
    said: list[str] = []
    before = [hash_path(p) for p in sources]
    done = list(embed_files(plain(), sources, out, announce=said.append, **OPTIONS))
    assert [d.target for d in done] == [out / p.name for p in sources]
    assert [d.cells for d in done] == [40, 41, 42]
    assert [hash_path(p) for p in sources] == before
    assert sorted(p.name for p in out.iterdir()) == [p.name for p in sources]
    for source, line, item in zip(sources, said, done, strict=True):
        assert line.startswith(f"{source}: ")
        adata, expected = anndata.read_h5ad(item.target), anndata.read_h5ad(source)
        plain().embed(expected, progress=False)
        np.testing.assert_array_equal(adata.obsm["X_plain"], expected.obsm["X_plain"])
        assert (adata.obs_names == expected.obs_names).all()
        assert f"{adata.n_obs} cells" in str(item)


def test_finished_work_is_recognized(plain: Any, sources: list[Path], out: Path) -> None:
    assert run(plain(), sources, out) == ["embedded"] * 3
    held = state(out)
    done = list(embed_files(plain(), sources, out, **OPTIONS))
    assert [d.status for d in done] == ["unchanged"] * 3
    assert [d.cells for d in done] == [40, 41, 42]
    assert "left alone" in str(done[0])
    assert state(out) == held


def test_what_changed_is_done_again(
    plain: Any, simulated: Any, sources: list[Path], out: Path
) -> None:
    run(plain(), sources, out)
    simulated(45, seed=9).write_h5ad(sources[1])
    assert run(plain(), sources, out) == ["unchanged", "embedded", "unchanged"]
    assert anndata.read_h5ad(out / "slice1.h5ad").n_obs == 45
    assert run(plain(), sources, out, shift=1) == ["embedded"] * 3
    assert run(plain(), sources, out, shift=1) == ["unchanged"] * 3
    assert run(plain(width=5), sources, out, shift=1) == ["embedded"] * 3


def test_another_key_is_another_job(plain: Any, sources: list[Path], out: Path) -> None:
    run(plain(), sources[:1], out)
    with pytest.raises(OutputError, match="overwrite"):
        run(plain(), sources[:1], out, key_added="other")
    assert run(plain(), sources[:1], out, key_added="other", overwrite=True) == ["embedded"]
    assert read_record(out / "slice0.h5ad", "other") is not None


def test_an_interrupted_run_continues(
    plain: Any, sources: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Plain.prepare

    def stop_at_second(self: Any, tissue: Any, *args: Any, **options: Any) -> Any:
        if tissue.n_cells == 41:
            raise KeyboardInterrupt
        return prepare(self, tissue, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Plain, "prepare", stop_at_second)
        with pytest.raises(KeyboardInterrupt):
            run(plain(), sources, out)
    assert [p.name for p in out.iterdir()] == ["slice0.h5ad"]
    assert run(plain(), sources, out) == ["unchanged", "embedded", "embedded"]


def test_two_inputs_of_one_name(
    plain: Any, simulated: Any, sources: list[Path], out: Path, tmp_path: Path
) -> None:
    other = tmp_path / "slice0.h5ad"
    simulated(40).write_h5ad(other)
    with pytest.raises(InputError, match="would both be written"):
        run(plain(), [*sources, other], out)
    assert not out.exists()


def test_onto_its_own_input(plain: Any, sources: list[Path]) -> None:
    before = hash_path(sources[0])
    with pytest.raises(InputError, match="its own input"):
        run(plain(), sources, sources[0].parent, overwrite=True)
    assert hash_path(sources[0]) == before


@pytest.mark.parametrize("content", [b"not hdf5", None])
def test_a_foreign_file_is_not_replaced_unless_asked(
    plain: Any, simulated: Any, sources: list[Path], out: Path, content: bytes | None
) -> None:
    out.mkdir()
    target = out / "slice0.h5ad"
    if content is None:
        simulated(150, seed=2).write_h5ad(target)
    else:
        target.write_bytes(content)
    before = target.read_bytes()
    with pytest.raises(OutputError, match=r"not written by terrazzo.*--overwrite"):
        run(plain(), sources[:1], out)
    assert target.read_bytes() == before
    assert run(plain(), sources[:1], out, overwrite=True) == ["embedded"]


def test_a_dry_run_writes_nothing(plain: Any, sources: list[Path], out: Path) -> None:
    said: list[str] = []
    done = list(embed_files(plain(), sources, out, dry_run=True, announce=said.append, **OPTIONS))
    assert [d.status for d in done] == ["planned"] * 3
    assert len(said) == 3
    assert "dry run" in str(done[0])
    assert not out.exists()


def test_a_folder_that_cannot_be_written(plain: Any, sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            OutputError, match=r"is a file, and results need a folder|cannot be written"
        ):
            run(plain(), sources, folder)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (
            OSError("Can't write data (error message = 'No space left on device')"),
            "the disk is full",
        ),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_a_failing_write_leaves_what_was_there(
    plain: Any,
    sources: list[Path],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    says: str,
) -> None:
    run(plain(), sources[:1], out)
    held = state(out)

    def fail(self: AnnData, path: Path, *args: Any, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(AnnData, "write_h5ad", fail)
    with pytest.raises(OutputError, match=says):
        run(plain(), sources, out, shift=2)
    assert state(out) == held


def test_a_bad_slice_is_named(plain: Any, simulated: Any, sources: list[Path], out: Path) -> None:
    adata = simulated(41, seed=1)
    del adata.obsm["spatial"]
    adata.write_h5ad(sources[1])
    with pytest.raises(InputError, match=r"slice1\.h5ad.*no spatial coordinates"):
        run(plain(), sources, out)
    assert [p.name for p in out.iterdir()] == ["slice0.h5ad"]
    sources[1].write_bytes(b"broken")
    with pytest.raises(InputError, match=r"slice1\.h5ad"):
        run(plain(), sources, out)
    with pytest.raises(InputError, match="does not exist"):
        run(plain(), [out / "gone.h5ad"], out)


def test_a_folder_holds_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path, "X_plain") is None
