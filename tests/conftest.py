"""What several test files share."""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is imported: the workers of pytest-xdist share the cores

# A run that a shell began in the background ignores Ctrl-C, and one by nohup the end of the terminal; so would all
# processes that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples in each run, so that a run can be repeated; HYPOTHESIS_PROFILE=random (`make fuzz`) tries others.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("random", derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the real slices and reference files: TERRAZZO_SHARED, else ``../shared``; skips where absent.

    TERRAZZO_SHARED may name the folder itself or its ``data`` folder.
    """
    stated = os.environ.get("TERRAZZO_SHARED")
    folder = Path(stated) if stated else REPOSITORY.parent / "shared"
    if folder.name == "data" and not (folder / "data").is_dir():
        folder = folder.parent
    if not (folder / "data").is_dir():
        pytest.skip(
            "no shared data: set TERRAZZO_SHARED to the folder that holds data/ and reference/"
        )
    return folder


def make_loud(module: Any, seed: int = 0) -> Any:
    """Fill a module with random weights so large that an error in any part of it moves the output.

    With a default start the whole pair bias moves the output by less than 1e-3, so errors would hide.
    """
    import torch

    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if name.endswith("gaussian.means") or name == "means":
                p.copy_(40 * torch.rand(p.shape, generator=g))
            elif name.endswith("gaussian.stds") or name == "stds":
                p.copy_(2 + 8 * torch.rand(p.shape, generator=g))
                p[0] *= -1  # as in training: the published code takes the absolute value
            elif "gaussian.linear" in name:
                p.copy_((1.3 if p.ndim == 2 else 0.2) + 0.1 * noise)
            elif "gaussian.proj" in name:
                p.copy_((12 if p.ndim == 2 else 0.5) * noise / math.sqrt(p.shape[-1]))
            elif "norm" in name.lower() and name.endswith("weight"):
                p.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                p.copy_(0.1 * noise)
            elif "embeddings" in name or "token_types" in name:
                p.copy_((1.5 if "word" in name else 0.5) * noise)
            elif p.ndim == 2:
                scale = 2.0 if "query" in name or "key" in name else 1.0
                p.copy_(scale * noise / math.sqrt(p.shape[1]))
    return module


@pytest.fixture(scope="session")
def loud() -> Callable[..., Any]:
    """Return :func:`make_loud`."""
    return make_loud


@pytest.fixture(scope="session")
def small_config() -> Callable[..., Any]:
    """Make a very small SToFM config; keywords change its sub-slices."""

    def make(n_tokens: int, **subslices: Any) -> Any:
        from terrazzo.systems.stofm.cell_encoder import CellEncoderConfig
        from terrazzo.systems.stofm.config import SToFMConfig
        from terrazzo.systems.stofm.se2 import SE2Config
        from terrazzo.systems.stofm.subslices import SubSliceConfig

        encoder = CellEncoderConfig(
            vocab_size=n_tokens,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            intermediate_size=48,
            max_length=64,
            output_dim=16,
        )
        se2 = SE2Config(
            input_dim=16, hidden_size=32, num_layers=2, num_heads=4, ffn_size=48, num_kernels=16
        )
        return SToFMConfig(
            encoder, se2, replace(SubSliceConfig(subslice_size=80, n_neighbors=20), **subslices)
        )

    return make


@pytest.fixture(scope="session")
def simulated() -> Callable[..., AnnData]:
    """Make a simulated slice; equal arguments are simulated once, and every call returns a copy."""
    made: dict[Any, AnnData] = {}

    def make(n_cells: int = 200, n_genes: int = 60, **options: Any) -> AnnData:
        from terrazzo import simulate

        key = (n_cells, n_genes, *sorted(options.items()))
        if key not in made:
            made[key] = simulate.tissue(n_cells, n_genes=n_genes, **options)
        return made[key].copy()

    return make


@pytest.fixture(scope="session")
def tiny_model(
    simulated: Callable[..., AnnData], small_config: Callable[..., Any]
) -> Callable[..., Any]:
    """Make a very small SToFM with loud random weights; keywords change its sub-slices. Made once for each."""
    made: dict[Any, Any] = {}

    def make(**subslices: Any) -> Any:
        from terrazzo import Slice, SToFM, Vocabulary

        key = tuple(sorted(subslices.items()))
        if key not in made:
            vocabulary = Vocabulary.from_slices([Slice.from_anndata(simulated())])
            model = SToFM(small_config(vocabulary.n_tokens, **subslices), vocabulary)
            make_loud(model.module)
            made[key] = model
        return made[key]

    return make


@pytest.fixture(scope="session")
def histology(simulated: Callable[..., AnnData]) -> Callable[..., AnnData]:
    """Make a small Visium slice with its section; equal arguments are simulated once."""

    def make(n: int = 90, n_genes: int = 60, **options: Any) -> AnnData:
        return simulated(
            n, n_genes, **({"layout": "visium", "image": True, "image_px": 500} | options)
        )

    return make


@pytest.fixture(scope="session")
def align_model(histology: Callable[..., AnnData], loud: Callable[..., Any]) -> Callable[..., Any]:
    """Make a very small ST-Align with loud weights, fitted on a slice; keywords are the preset's, or its config's.

    Each is fitted once, and every call returns a copy.
    """
    from terrazzo import Slice, STAlign, Vocabulary
    from terrazzo.systems.stalign.config import preset
    from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder

    made: dict[Any, Any] = {}

    def fitted(flavor: Any, adaptive: bool, fusion: Any, **changes: Any) -> Any:
        tissue = Slice.from_anndata(histology(seed=7))
        vocabulary = Vocabulary.from_slices([tissue])
        eye = FrozenImageEncoder.small(image_size=32, patch_size=16, width=64, num_layers=1)
        config = preset(
            "tiny",
            len(vocabulary),
            flavor=flavor,
            image_encoder=eye,
            adaptive=adaptive,
            fusion=fusion,
        )
        config = replace(config, **({"spot_pixels": 16, "niche_pixels": 32} | changes))
        model = STAlign(config, vocabulary, seed=1, image_encoder=eye)
        loud(model.module.net)
        return model.fit([tissue])

    def make(
        flavor: Any = "terrazzo", adaptive: bool = True, fusion: Any = "attention", **changes: Any
    ) -> Any:
        key = (flavor, adaptive, fusion, *sorted(changes.items()))
        if key not in made:
            made[key] = fitted(flavor, adaptive, fusion, **changes)
        return copy.deepcopy(made[key])

    return make


@pytest.fixture
def quiet_figures() -> Iterator[None]:
    """Draw without a display, and close every figure."""
    import matplotlib as mpl

    with warnings.catch_warnings():
        mpl.use("Agg", force=True)
        import matplotlib.pyplot as plt

        yield
        plt.close("all")


@pytest.fixture
def vectors() -> Callable[..., np.ndarray]:
    """Embed and return ``obsm["X_stofm"]``."""

    def run(model: Any, adata: AnnData, **options: Any) -> np.ndarray:
        return np.asarray(model.embed(adata, progress=False, **options).obsm["X_stofm"])

    return run


@pytest.fixture(scope="session")
def ship_script() -> ModuleType:
    """Load benchmarks/ship.py, which no package holds."""
    path = REPOSITORY / "benchmarks" / "ship.py"
    spec = importlib.util.spec_from_file_location("ship", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ship"] = module  # dataclasses look for their module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; return exit code, standard output and standard error."""

    from terrazzo.cli import main

    def run(*words: Any) -> tuple[int, str, str]:
        code = main([str(w) for w in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(call: Any, tmp_path: Path) -> Any:
    """Run a command that must end with exit code 2, one line, and nothing written."""

    def run(*words: Any) -> str:
        out = tmp_path / "refused"
        code, told, err = call(*words, "--out", out)
        assert (code, told) == (2, "")
        assert err.startswith("error: ")
        lines = [line for line in err.strip().splitlines() if not line.startswith("warning: ")]
        assert len(lines) == 1
        assert not out.exists() or list(out.rglob("*")) == []
        return lines[0]

    return run


@pytest.fixture
def labeled(simulated: Any, tmp_path: Path) -> list[Path]:
    """Write two slices with labels, proportions, and an embedding."""
    import numpy as np

    folder = tmp_path / "slices"
    folder.mkdir()
    for number in range(2):
        adata = simulated(60, seed=number).copy()
        adata.obsm["X_t"] = adata.X[:, :8].toarray()
        adata.obsm["proportions"] = np.array([[0.25, 0.75], [0.5, 0.5]] * 30)
        adata.write_h5ad(folder / f"s{number}.h5ad")
    return [folder / f"s{number}.h5ad" for number in range(2)]


@pytest.fixture
def sentence(
    labeled: list[Path], tiny_model: Any, tmp_path: Path
) -> Callable[[str, str], list[str]]:
    """Make the words of a command; SLICES, FIRST, CHECKPOINT, CORPUS, RECIPE, TABLE, DATA, OUT stand for paths."""
    from terrazzo import corpus

    def make(verb: str, line: str) -> list[str]:
        given = {
            "SLICES": [str(path) for path in labeled],
            "FIRST": [str(labeled[0])],
            "DATA": [str(tmp_path / "data")],
        }
        if "CHECKPOINT" in line:
            given["CHECKPOINT"] = [str(tiny_model().save_pretrained(tmp_path / "checkpoint"))]
        if "RECIPE" in line or "CORPUS" in line:
            built = corpus.build(
                labeled, tmp_path / "corpus", min_genes=0, scheduler="synchronous", progress=False
            )
            given |= {
                "CORPUS": [str(built.folder)],
                "RECIPE": [str(write_recipe(built.folder, tmp_path))],
            }
        if "TABLE" in line:
            given["TABLE"] = [str(write_table(labeled, tmp_path))]
        words = [
            w
            for word in line.split()
            for w in given.get(word, [word.replace("OUT", str(tmp_path / "out"))])
        ]
        return [*verb.split(), *words]

    return make


def write_recipe(folder: Path, place: Path) -> Path:
    from terrazzo.training.recipe import recipe_from_dict, save_recipe

    short = {
        "stage": "stofm-pretrain",
        "corpus": str(folder),
        "out": "nowhere",
        "model": {"preset": "tiny", "subslices": {"subslice_size": 16}},
        "data": {"batch_subslices": 2},
        "optim": {"lr": 1e-3, "epochs": 2, "warmup_steps": 2},
        "objective": {"kind": "paper"},
        "run": {"accelerator": "cpu", "log_every": 1, "checkpoint_every": 1},
    }
    save_recipe(recipe_from_dict(short), place / "recipe.yaml")
    return place / "recipe.yaml"


def write_table(files: list[Path], place: Path) -> Path:
    import yaml

    (place / "data" / "made").mkdir(parents=True)
    for path in files:
        (place / "data" / "made" / path.name).write_bytes(path.read_bytes())
    plain = {
        "name": "small",
        "title": "A small table",
        "source": "data at hand",
        "task": "probe",
        "label": "region",
        "metrics": ["accuracy"],
        "heads": ["linear"],
        "models": [],
        "parts": [{"name": "one", "dataset": "made", "test": "s0", "train": ["s1"]}],
    }
    (place / "small.yaml").write_text(yaml.safe_dump(plain))
    return place / "small.yaml"


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a corpus of three training slices and a held-out one, 64 cells each."""
    from terrazzo import corpus, simulate
    from terrazzo.corpus.splits import Splits

    folder = tmp_path_factory.mktemp("trained")
    for number, adata in enumerate(simulate.corpus(4, 64, n_genes=40, seed=2, n_donors=4)):
        adata.write_h5ad(folder / f"s{number}.h5ad")
    files, splits = sorted(folder.glob("*.h5ad")), Splits("slice", validation=0.25)
    quiet: dict[str, Any] = {"scheduler": "synchronous", "progress": False}
    return Path(corpus.build(files, folder / "corpus", min_genes=0, splits=splits, **quiet).folder)


@pytest.fixture(scope="session")
def histology_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a corpus of three training slices and a held-out one with histology, 60 spots each, and one without."""
    import pandas as pd

    from terrazzo import corpus, simulate

    folder = tmp_path_factory.mktemp("histology")
    options: dict[str, Any] = {
        "layout": "visium",
        "n_genes": 50,
        "seed": 3,
        "image": True,
        "image_px": 300,
    }
    for number, adata in enumerate(simulate.corpus(5, 60, n_donors=5, **options)):
        if number == 3:
            del adata.uns["spatial"]
        adata.write_h5ad(folder / f"s{number}.h5ad")
    rows = [{"path": f"s{i}.h5ad", "split": "validation" if i == 4 else "train"} for i in range(5)]
    pd.DataFrame(rows).to_csv(folder / "slices.csv", index=False)
    quiet: dict[str, Any] = {"scheduler": "synchronous", "progress": False}
    return Path(corpus.build(folder / "slices.csv", folder / "corpus", min_genes=0, **quiet).folder)


SHORT_STAGES: dict[str, dict[str, Any]] = {
    "stofm-adapt": {
        "model": {"preset": "tiny", "subslices": {"subslice_size": 16}},
        "data": {"batch_cells": 32, "block": 16, "buffer_blocks": 4},
    },
    "stofm-pretrain": {
        "model": {"preset": "tiny", "subslices": {"subslice_size": 16}},
        "data": {"batch_subslices": 2},
        "objective": {"kind": "paper", "frozen_epochs": 1},
    },
    "stimage-pretrain": {"model": {"preset": "tiny"}},
    "stalign-pretrain": {"model": {"preset": "tiny"}, "data": {"batch_spots": 24}},
}


@pytest.fixture
def recipe(corpus_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Make a short recipe: 4 sub-slices a slice, 3 epochs of 6 batches and 3 steps; keywords change its sections."""

    def make(stage: str = "stofm-pretrain", out: str | Path = "run", **sections: Any) -> Any:
        from terrazzo.training.recipe import recipe_from_dict

        base: dict[str, Any] = {
            "stage": stage,
            "corpus": str(corpus_folder),
            "out": str(tmp_path / out),
            "optim": {"lr": 1e-3, "epochs": 3, "warmup_steps": 2, "accumulate": 2},
            "run": {"accelerator": "cpu", "log_every": 1, "checkpoint_every": 1},
            **SHORT_STAGES[stage],
        }
        if stage == "stalign-pretrain":
            base["model"] = {"image_encoder": "random", **base.get("model", {})}
        for name, values in sections.items():
            if isinstance(values, dict):
                base[name] = {**base.get(name, {}), **values}
            else:
                base[name] = values
        return recipe_from_dict(base)

    return make


@pytest.fixture
def stage_of(recipe: Callable[..., Any]) -> Callable[..., Any]:
    """Make the stage of a short recipe; arguments as of ``recipe``."""

    def make(*args: Any, **sections: Any) -> Any:
        from terrazzo.training.run import make_stage

        return make_stage(recipe(*args, **sections), progress=False)

    return make
