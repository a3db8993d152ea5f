"""Every ablation of SToFM (tables 5, A.2 to A.7) is a switch of the recipe: each trains a step and leaves a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import terrazzo as tz
from terrazzo.training.logs import read

pytestmark = pytest.mark.slow

ABLATIONS: dict[str, dict[str, Any]] = {
    "as published": {},
    "5: no virtual cells": {"model": {"subslices": {"subslice_size": 16, "virtual": False}}},
    **{
        f"A.2: sub-slices of {n}": {"model": {"subslices": {"subslice_size": n}}}
        for n in (10, 100, 500, 2000)
    },
    **{
        f"A.2: Leiden resolution {r}": {
            "model": {"subslices": {"subslice_size": 16, "leiden_resolution": r}}
        }
        for r in (0.1, 0.5, 1.5)
    },
    "A.3: no micro scale": {
        "model": {"subslices": {"subslice_size": 1}},
        "data": {"batch_subslices": 16},
    },
    "A.3: no distance matrix": {"model": {"subslices": {"subslice_size": 16, "pair": "none"}}},
    **{
        f"A.4: {n} cells encoded again": {"objective": {"frozen_epochs": 0, "reencode": n}}
        for n in (0, 4, 12)
    },
    **{f"A.5: {share:.1%} of the data": {"data": {"share": share}} for share in (0.125, 0.5)},
    **{
        f"A.6: alpha {alpha}": {"model": {"subslices": {"subslice_size": 16, "alpha": alpha}}}
        for alpha in (0.0, 0.2, 0.4, 0.6, 1.0)
    },
    **{f"A.7: gamma {gamma}": {"objective": {"gamma": gamma}} for gamma in (0.0, 0.2, 0.8, 1.0)},
    "all distances": {"model": {"subslices": {"subslice_size": 16, "pair": "full"}}},
    "cosine": {"objective": {"loss": "cosine", "mask_share": 0.12, "kept_share": 0.03}},
    "informed start": {"model": {"init": "informed", "subslices": {"subslice_size": 16}}},
    "own+niche": {"objective": {"kind": "own+niche", "mask_share": 0.5}},
    "halo": {"model": {"subslices": {"subslice_size": 16, "halo": 2.0}}},
    "bfloat16": {"run": {"precision": "bf16-mixed"}, "objective": {"frozen_epochs": 0}},
}


def train(config: Any) -> Path:
    from terrazzo.training.run import pretrain

    return pretrain(config, progress=False)


def assert_trained(folder: Path, adata: Any) -> None:
    rows = read(folder.parent / "logs" / "metrics.csv")
    numbers = [float(value) for row in rows for value in row.values() if value]
    assert np.isfinite(numbers).all()
    assert {"train/loss", "val/loss", "train/gradient_norm", "lr", "cells_per_second"} <= set(
        rows[0]
    )
    assert np.isfinite(tz.load(folder).embed(adata, progress=False).obsm["X_stofm"]).all()


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_is_a_switch(recipe: Any, simulated: Any, name: str) -> None:
    sections = {"model": {}, **ABLATIONS[name]}
    sections["model"] = {"preset": "tiny", "subslices": {"subslice_size": 16}, **sections["model"]}
    config = recipe(optim={"max_steps": 1, "accumulate": 1}, **sections)
    assert_trained(train(config), simulated(50, 40))


@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"own_weight": 1.0, "view": "thinned"},
        {"masked_weight": 0.0},
        {"contrastive_weight": 0.0},
    ],
    ids=["paper", "own", "contrastive alone", "masked genes alone"],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_domain_adaptation_and_without_it(
    recipe: Any, simulated: Any, tmp_path: Path, objective: dict[str, Any], precision: str
) -> None:
    short = {"max_steps": 1, "accumulate": 1}
    adapted = train(
        recipe(
            "stofm-adapt", "adapted", objective=objective, optim=short, run={"precision": precision}
        )
    )
    assert_trained(adapted, simulated(50, 40))  # table 5: cell encoder with domain adaptation
    source = {"checkpoint": str(adapted), "subslices": {"subslice_size": 16}}
    folder = train(recipe("stofm-pretrain", "pretrained", model=source, optim=short))
    assert_trained(folder, simulated(50, 40))
    record = tz.load(folder).provenance
    assert record["started from"] == str(adapted)
    assert '"stage": "stofm-adapt"' in record["before"]
