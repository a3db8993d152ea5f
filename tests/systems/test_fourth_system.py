"""A system of another package goes through everything by an entry point alone."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import yaml

import terrazzo as tz
from terrazzo.corpus.splits import Splits
from terrazzo.errors import ConfigError
from terrazzo.systems import registry

PACKAGE = Path(__file__).parent / "fourth" / "linear_spots"


def install(site: Path, entry: str = "linear = linear_spots:SYSTEM") -> None:
    """Put a package where an installer would: its folder, and the metadata with its entry point."""
    shutil.copytree(PACKAGE, site / PACKAGE.name)
    info = site / "linear_spots-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: linear-spots\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[terrazzo.systems]\n{entry}\n")


def forget() -> None:
    """Let the registry look for systems again, and Python for the package."""
    registry.systems.cache_clear()
    importlib.invalidate_caches()
    for name in list(sys.modules):
        if name.split(".")[0] == "linear_spots":
            del sys.modules[name]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make an empty folder that packages are imported from."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    forget()
    yield folder
    forget()


@pytest.fixture
def installed(site: Path) -> Path:
    """Install the fourth system."""
    install(site)
    forget()
    return site


@pytest.fixture
def slices(simulated: Any, tmp_path: Path) -> list[Path]:
    """Write three labeled slices."""
    folder = tmp_path / "slices"
    folder.mkdir()
    paths = []
    for number in range(3):
        path = folder / f"s{number}.h5ad"
        simulated(120, seed=number, donor=f"d{number}").write_h5ad(path)
        paths.append(path)
    return paths


@pytest.fixture
def corpus(slices: list[Path], tmp_path: Path) -> Path:
    """Build a corpus with a held-out slice."""
    splits = Splits(validation=0.34)
    built = tz.build_corpus(
        slices,
        tmp_path / "corpus",
        splits=splits,
        min_genes=0,
        scheduler="synchronous",
        progress=False,
    )
    return Path(built.folder)


def test_the_package_is_complete() -> None:
    assert sorted(path.name for path in PACKAGE.iterdir() if path.suffix == ".py") == [
        "__init__.py",
        "model.py",
        "options.py",
        "stages.py",
    ]


def test_it_trains_resumes_embeds_and_is_scored(
    installed: Path, corpus: Path, slices: list[Path], tmp_path: Path, call: Any
) -> None:
    run = tmp_path / "run"
    words = ["pretrain", "linear-small", "--corpus", corpus, "--out", run]
    code, printed, err = call(*words, "--max-steps", 3)
    assert (code, err) == (0, "")
    assert str(run / "model") in printed

    loaded = tz.load(run / "model")
    assert (type(loaded).__name__, loaded.trained) == ("Linear", True)
    assert loaded.config.width == 8

    adata = loaded.embed(slices[0], progress=False)
    sharp = loaded.embed(slices[0], sharpness=2.0, progress=False)
    np.testing.assert_array_equal(sharp.obsm["X_linear"], 2 * adata.obsm["X_linear"])
    with pytest.raises(ConfigError, match=r"halo belongs to SToFM; this checkpoint is Linear"):
        loaded.embed(slices[0], halo=2, progress=False)

    out = tmp_path / "embedded"
    code, printed, err = call(
        "embed", *slices, "--model", run / "model", "--sharpness", 2, "--out", out
    )
    assert (code, err) == (0, "")
    written = anndata.read_h5ad(out / "s0.h5ad")
    settings = json.loads(written.uns["terrazzo"]["X_linear"]["settings"])
    assert settings == {"sharpness": 2.0}
    np.testing.assert_array_equal(written.obsm["X_linear"], sharp.obsm["X_linear"])

    code, _, err = call("report", run, out / "s0.h5ad", "--out", tmp_path / "report.html")
    assert (code, err) == (0, "")
    assert "X_linear" in (tmp_path / "report.html").read_text()


def test_a_stopped_run_goes_on_as_if_it_had_not(
    installed: Path, corpus: Path, tmp_path: Path
) -> None:
    def recipe(name: str, steps: int) -> Any:
        return tz.load_recipe(
            "linear-small",
            corpus=corpus,
            out=tmp_path / name,
            optim={"epochs": 2, "max_steps": steps},
        )

    class Stop(Exception):
        """Ends a run."""

    from lightning import Callback

    class StopAt(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 4:
                raise Stop

    whole = tz.pretrain(recipe("whole", 9), progress=False)
    with pytest.raises(Stop):
        tz.pretrain(recipe("stopped", 9), progress=False, callbacks=[StopAt()])
    resumed = tz.pretrain(recipe("stopped", 9), resume=True, progress=False)
    then, now = tz.load(whole), tz.load(resumed)
    assert then.fingerprint() == now.fingerprint()


def test_a_key_of_another_system_is_named(installed: Path) -> None:
    with pytest.raises(ConfigError, match=r"objective has an unknown key 'mask_share'"):
        tz.load_recipe("linear-small", objective={"mask_share": 0.3})


def test_help_and_lists_name_it(installed: Path, call: Any) -> None:
    code, printed, _ = call("embed", "--help", "linear")
    assert code == 0
    assert "--sharpness" in printed
    assert "Factor of the vectors" in printed
    code, printed, _ = call("recipes")
    assert (code, "linear-small" in printed) == (0, True)
    code, printed, _ = call("recipes", "show", "linear-small")
    assert printed.startswith("# A linear autoencoder over spots")
    code, _, err = call("embed", "--help", "liner")
    assert code == 2
    assert "linear" in err


def test_a_table_of_the_benchmarks_takes_it(
    installed: Path, corpus: Path, slices: list[Path], tmp_path: Path, call: Any
) -> None:
    recipe = tz.load_recipe(
        "linear-small", corpus=corpus, out=tmp_path / "run", optim={"max_steps": 2}
    )
    trained = tz.pretrain(recipe, progress=False)
    table = tmp_path / "small.yaml"
    settings = {
        "name": "small",
        "title": "A small table",
        "source": "data at hand",
        "task": "probe",
        "label": "region",
        "metrics": ["accuracy"],
        "heads": ["linear"],
        "splits": ["random"],
        "runs": 1,
        "models": [],
        "parts": [{"name": "one", "dataset": "slices", "test": "s0", "settings": ["within"]}],
    }
    table.write_text(yaml.safe_dump(settings))
    words = ["bench", table, "--data", tmp_path, "--models", f"mine={trained}"]
    code, _, err = call(*words, "--out", tmp_path / "tables")
    assert code == 0, err
    page = next((tmp_path / "tables").rglob("*.md")).read_text()
    assert "mine" in page


def test_a_fresh_process_finds_it_by_its_metadata(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-m", "terrazzo", "recipes"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    assert "linear-small" in done.stdout


def test_a_package_that_cannot_be_imported_is_named(site: Path) -> None:
    install(site, "broken = linear_spots.nowhere:SYSTEM")
    forget()
    with pytest.raises(ConfigError, match=r"entry point 'broken' .* cannot be imported"):
        tz.load_recipe("stofm-tiny-adapt")


def test_a_name_that_is_taken_is_refused(site: Path) -> None:
    install(site, "copy = terrazzo.systems.stofm:SYSTEM")
    forget()
    with pytest.raises(ConfigError, match="registers the system 'stofm', which"):
        registry.systems()


def test_what_is_not_a_system_is_refused(site: Path) -> None:
    install(site, "odd = linear_spots:__name__")
    forget()
    with pytest.raises(ConfigError, match=r"is not a terrazzo\.systems.registry\.System"):
        registry.systems()
