"""ST as images learns: hidden squares of a slice that it never saw, better than any trivial answer."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import terrazzo as tz
from terrazzo.systems.stimage.recipe import (
    STImageObjective,
    STImageRecipe,
    STImageSource,
    WindowData,
)
from terrazzo.systems.stimage.windows import WindowConfig
from terrazzo.training.recipe import OptimConfig


@pytest.mark.slow
def test_hidden_squares_are_predicted_better_than_by_trivial_answers_and_untrained_weights(
    tmp_path: Path,
) -> None:
    *training, held_out = tz.simulate.corpus(5, 400, layout="visium", n_genes=300, seed=0)
    for i, adata in enumerate(training):
        adata.obs = adata.obs[["array_row", "array_col"]]  # no label gets near the training
        adata.write_h5ad(tmp_path / f"{i}.h5ad")
    rows = [{"path": f"{i}.h5ad", "split": "train"} for i in range(len(training))]
    pd.DataFrame(rows).to_csv(tmp_path / "slices.csv", index=False)
    tz.build_corpus(
        tmp_path / "slices.csv",
        tmp_path / "corpus",
        min_genes=1,
        scheduler="synchronous",
        progress=False,
    )
    recipe = STImageRecipe(
        corpus=str(tmp_path / "corpus"),
        out=str(tmp_path / "run"),
        model=STImageSource(
            preset="tiny",
            init="informed",
            windows=WindowConfig(window=12, channels=300, choose="spatial"),
        ),
        data=WindowData(batch_windows=4, windows_per_slice=8),
        optim=OptimConfig(lr=1e-3, warmup_steps=10, epochs=1000, max_steps=40),
        objective=STImageObjective(target="thinned"),
    )
    trained = tz.load(tz.pretrain(recipe, progress=False))
    assert isinstance(trained, tz.STImage)
    untrained = tz.STImage(trained.config, trained.vocabulary, seed=3)
    untrained.module.autocorrelation.copy_(
        trained.module.autocorrelation
    )  # the same channels: weights differ, no more
    answers = {"trained": trained.reconstruct, "untrained": untrained.reconstruct}
    result = tz.tasks.reconstruct(held_out, answers, size=6, n_genes=100, repeats=8, seed=0)
    table = result.summary()
    mse = table[table["metric"] == "mse"].set_index("system")["mean"]
    for other in (
        "gene mean",
        "mean of 16 nearest",
        "mean of 6 nearest",
        "linear interpolation",
        "untrained",
    ):
        assert mse["trained"] < 0.98 * mse[other], other
