"""Model cards: what a run recorded is in them, in order, and the hub can read their head."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

import terrazzo as tz
from terrazzo.models.card import card, losses

RUN = {
    "weights": "trained",
    "stage": "pretrain",
    "objective": "own+niche",
    "started from": "informed weights",
    "corpus": "brain",
    "corpus_sha256": "a" * 64,
    "train slices": 11,
    "train cells": 41000,
    "validation slices": 1,
    "validation cells": 3600,
    "technology": "Visium",
    "organism": "human",
    "tissue": "cortex",
    "counts known": "median 98.1%, least 91.0%",
    "epochs": 3,
    "steps": 1200,
    "processes": 1,
    "train/loss": 0.2,
    "train/masked_cells": 0.11,
    "train/own": 0.05,
    "train/gradient_norm": 1.0,
    "val/loss": 0.3,
    "val/masked_cells": 0.164,
    "val/masked_cells_neighbors": 0.175,
    "val/masked_cells_zero": 1.0,
    "val/own": 0.06,
    "val/own_slice_mean": 0.08,
    "date": "2026-01-01",
    "recipe": "{}",
}


@pytest.fixture
def filled(tiny_model: Any) -> str:
    base = tiny_model()
    return card(tz.SToFM(base.config, base.vocabulary, provenance=dict(RUN)))


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_part_is_there_and_filled(filled: str) -> None:
    order = [
        "How to use",
        "Data",
        "Training",
        "Losses",
        "Genes",
        "License",
        "Limits",
        "Citation",
        "Hyperparameters",
    ]
    places = [filled.index(f"\n## {title}\n") for title in [*order, "Where the weights come from"]]
    assert places == sorted(places)
    assert "never trained" not in filled
    assert "| train | 11 | 41,000 |" in section(filled, "Data")
    assert "Visium" in section(filled, "Data")
    assert "median 98.1%" in section(filled, "Data")
    assert "steps: 1200" in section(filled, "Training")
    assert "60 genes" in section(filled, "Genes")
    assert "Not stated" in section(filled, "License")
    assert "sub-slices" in section(filled, "Limits")
    assert "arXiv:2507.11588" in section(filled, "Citation")
    assert "| corpus_sha256 | " + "a" * 64 in section(filled, "Where the weights come from")


def test_losses_stand_beside_trivial_answers(filled: str) -> None:
    assert "| masked cells | 0.11 | 0.164 | neighbors 0.175; zero 1 |" in section(filled, "Losses")
    assert "| own | 0.05 | 0.06 | slice mean 0.08 |" in section(filled, "Losses")
    assert "gradient" not in section(filled, "Losses")


def test_a_part_whose_name_begins_like_another() -> None:
    held = {
        "train/masked": 1.0,
        "val/masked": 2.0,
        "val/masked_mean": 3.0,
        "train/masked_entries": 4.0,
        "val/masked_entries": 5.0,
        "val/masked_entries_mean": 6.0,
    }
    assert losses(held) == [
        ("masked", 1.0, 2.0, {"mean": 3.0}),
        ("masked_entries", 4.0, 5.0, {"mean": 6.0}),
    ]


@pytest.mark.parametrize("license", [None, "MIT", 'odd: "name"\n- x'])
def test_the_head_is_yaml(tiny_model: Any, license: str | None) -> None:
    base = tiny_model()
    origin = {**RUN, **({"license": license} if license else {})}
    front = yaml.safe_load(
        card(tz.SToFM(base.config, base.vocabulary, provenance=origin)).split("---")[1]
    )
    assert front["tags"][-1] == "stofm"
    assert front.get("license") == (license.lower() if license else None)


def test_random_and_imported_weights(tiny_model: Any) -> None:
    base = tiny_model()
    assert "never trained" in card(base)
    assert "## Losses" not in card(base)
    origin = {"weights": "imported", "source": "SToFM, published weights"}
    text = card(tz.SToFM(base.config, base.vocabulary, provenance=origin))
    assert "SToFM, published weights" in section(text, "Data")
