"""Recipes: each loads, every key has its comment, `paper` is as published, and nothing foreign passes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from terrazzo.errors import ConfigError
from terrazzo.systems import registry
from terrazzo.systems.stofm.config import preset
from terrazzo.training.recipe import (
    load_recipe,
    recipe_about,
    recipe_from_dict,
    recipe_text,
    save_recipe,
)

NAMES = sorted(registry.recipe_files())
SCHEMES = ("patch", "spot", "multi-spot", "slice")


def test_there_are_recipes_of_each_size_stage_and_scheme() -> None:
    names = {
        f"stofm-{size}-{stage}"
        for size in ("tiny", "small", "paper")
        for stage in ("adapt", "pretrain")
    }
    names |= {f"stimage-tiny-{scheme}" for scheme in SCHEMES}
    names |= {"stimage-small-patch", "stimage-paper"}
    names |= {f"stalign-{size}" for size in ("tiny", "small", "paper")}
    names |= {"complete-tiny", "complete-small"}
    assert set(NAMES) == names


def keys(nested: dict[str, Any], prefix: str = "") -> set[str]:
    """Return ``{"optim.lr", ...}``."""
    out = set()
    for key, value in nested.items():
        out |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return out


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_states_and_comments_every_key(name: str) -> None:
    recipe, text = load_recipe(name), recipe_text(name)
    system, size, *rest = name.split("-", 2)
    assert type(recipe) is registry.stage_class(recipe.stage).recipe_class
    assert recipe.model.preset == size
    if system == "complete":
        assert recipe.stage == "complete"
    elif system == "stofm":
        assert [recipe.stage] == [f"stofm-{stage}" for stage in rest]
    else:
        assert recipe.stage == f"{system}-pretrain"
    if system == "stimage":
        assert [recipe.objective.scheme] == (rest or ["patch"])
    assert keys(yaml.safe_load(text)) == keys(dataclasses.asdict(recipe))
    assert recipe_about(text).endswith(".")
    above = ""
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#") and not line.rstrip().endswith(":"):
            assert "  # " in line or above.lstrip().startswith("#"), line
        above = line


def test_paper_is_as_published() -> None:
    adapt, pretrain = (load_recipe(f"stofm-paper-{stage}") for stage in ("adapt", "pretrain"))
    for config in (adapt, pretrain):  # table A.8
        assert (config.optim.lr, config.optim.warmup_steps, config.optim.accumulate) == (
            1e-4,
            500,
            4,
        )
        cut = config.model.subslices
        assert (cut.leiden_resolution, cut.alpha, cut.subslice_size) == (1.0, 0.8, 1000)
    assert adapt.data.batch_cells == pretrain.data.batch_subslices == 16
    losses = adapt.objective
    assert (losses.masked_weight, losses.contrastive_weight, losses.own_weight) == (1, 1, 0)
    assert losses.view == "dropout"
    assert (adapt.optim.epochs, pretrain.optim.epochs) == (1, 3)  # section 4.1
    goal = pretrain.objective
    assert (goal.kind, goal.loss, goal.gamma, goal.frozen_epochs, goal.reencode) == (
        "paper",
        "mse",
        0.5,
        2,
        12,
    )
    assert (goal.mask_share, goal.perturb_share) == (0.1, 0.1)
    encoder, se2 = preset("paper").cell_encoder, preset("paper").se2
    assert (encoder.vocab_size, encoder.hidden_size, encoder.num_layers, encoder.max_length) == (
        25_427,
        512,
        12,
        2048,
    )
    assert (encoder.num_heads, encoder.dropout, encoder.activation, encoder.layer_norm_eps) == (
        8,
        0.02,
        "relu",
        1e-12,
    )
    assert (se2.hidden_size, se2.num_layers, se2.num_heads, se2.dropout) == (256, 4, 8, 0.1)


def test_paper_recipe_of_st_as_images_is_as_published() -> None:
    config = load_recipe("stimage-paper")  # section 4.2
    optim, goal, windows = config.optim, config.objective, config.model.windows
    assert (optim.lr, optim.beta1, optim.beta2, optim.weight_decay) == (1e-4, 0.9, 0.999, 0.01)
    assert (optim.schedule, optim.epochs, config.data.batch_windows) == ("cosine", 40, 32)
    assert (goal.scheme, goal.flavor, goal.mask_share, goal.target) == (
        "patch",
        "paper",
        0.3,
        "values",
    )
    assert windows is not None
    assert (windows.window, windows.channels, windows.choose) == (16, 512, "weighted")


def test_paper_recipe_of_st_align_is_as_published() -> None:
    config = load_recipe("stalign-paper")  # sections 3.1, 3.4 and 4.1
    optim, goal = config.optim, config.objective
    assert (optim.lr, optim.schedule, optim.weight_decay, optim.weight_decay_end) == (
        5e-4,
        "cosine",
        0.04,
        0.4,
    )
    assert (goal.spot_weight, goal.niche_weight, goal.cross_weight, goal.neighbors) == (
        0.4,
        0.3,
        0.3,
        3,
    )
    assert (goal.flavor, goal.adaptive, goal.fusion, goal.modality) == (
        "paper",
        True,
        "attention",
        "both",
    )
    assert not goal.symmetric  # eq 11
    assert not goal.exclude_neighbors


def test_schemes_differ_in_the_scheme_alone() -> None:
    def settings(scheme: str) -> dict[str, Any]:
        whole = dataclasses.asdict(load_recipe(f"stimage-tiny-{scheme}", out="out"))
        del whole["objective"]["scheme"]
        del whole["objective"]["mask"]  # a site that sees no other cannot be hidden
        return whole

    assert settings("patch") == settings("spot") == settings("multi-spot") == settings("slice")


def test_round_trip(tmp_path: Path) -> None:
    recipe = load_recipe(NAMES[0], corpus="here", out=Path("there"), seed=3)
    assert (recipe.corpus, recipe.out, recipe.seed) == ("here", "there", 3)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert load_recipe(tmp_path / "recipe.yaml", seed=None, optim={"lr": None}) == recipe


def short(stage: str, **sections: Any) -> dict[str, Any]:
    return {"stage": stage, "corpus": "c", "out": "o", **sections}


def test_changed_changes_what_is_given() -> None:
    recipe = recipe_from_dict(short("stofm-adapt"))
    assert recipe.changed(run={"devices": None}) == recipe
    assert recipe.changed(run={"devices": 2}, optim={"max_steps": 7}).run.devices == 2
    assert recipe.changed(seed=5).seed == 5
    with pytest.raises(ConfigError, match="'devices'"):
        recipe.changed(run={"device": 2})
    with pytest.raises(ConfigError, match="Did you mean 'run'"):
        recipe.changed(runs={"devices": 2})
    with pytest.raises(ConfigError, match="seed"):
        recipe.changed(seed={"devices": 2})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "stage: stofm-adapt\ncorpus: c\nout: o\noptim: {learning_rate: 1}",
            "optim has an unknown key 'learning_rate'",
        ),
        (
            "stage: stofm-adapt\ncorpus: c\nout: o\noptim: {warm_up_steps: 1}",
            "Did you mean 'warmup_steps'",
        ),
        (
            "stage: stofm-adapt\ncorpus: c\nout: o\nmodel: {subslices: {split_sise: 1}}",
            "Did you mean 'subslice_size'",
        ),
        ("stage: stofm-adopt\ncorpus: c\nout: o", "Did you mean 'stofm-adapt'"),
        (
            "stage: nothing\ncorpus: c\nout: o",
            "The stages are stofm-adapt, stofm-pretrain, stimage-pretrain, stalign-pretrain",
        ),
        ("stage: [stofm-adapt]\ncorpus: c\nout: o", "there is no stage"),
        ("corpus: c\nout: o", "lacks stage"),
        (
            "stage: stofm-adapt\ncorpus: c\nout: o\nrun: {strategy: magic}",
            "must be one of 'auto', 'ddp', 'fsdp'",
        ),
        ("stage: stofm-adapt\nout: o", "lacks corpus"),
        (
            "stage: stofm-adapt\ncorpus: c\nout: o\noptim: {lr: 1e-4}",
            "must be of type float",
        ),  # YAML 1.1 reads a string
        (
            "stage: stimage-pretrain\ncorpus: c\nout: o\nseed: -1",
            "seed is -1; it must be at least 0",
        ),
        ("stage: stofm-adapt\ncorpus: c\nout: o\ndata:", "data must be a mapping"),
        ("- a", "must hold settings"),
        ("a: [", "not a readable YAML"),
    ],
)
def test_bad_recipes_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_recipe(path)


def test_a_misspelled_name_is_corrected() -> None:
    with pytest.raises(
        ConfigError, match=r"neither a recipe's name nor a file.*'stofm-tiny-adapt'"
    ):
        load_recipe("stofm-tiny-adopt")


# stage, sections that it does not have, and what the message says of them
FOREIGN = [
    (
        "stofm-adapt",
        {"align": {"spot_weight": 7}},
        "has an unknown key 'align'. Valid keys: stage,",
    ),
    ("stofm-adapt", {"pretrain": {"gamma": 0.5}}, "has an unknown key 'pretrain'. Valid keys:"),
    (
        "stofm-adapt",
        {"model": {"image_encoder": "/nowhere"}},
        "model has an unknown key 'image_encoder'. Valid keys: preset, checkpoint, init, subslices.",
    ),
    (
        "stofm-adapt",
        {"data": {"batch_spots": 3}},
        "data has an unknown key 'batch_spots'. Did you mean 'batch_cells'?",
    ),
    (
        "stofm-adapt",
        {"data": {"batch_subslices": 3}},
        "data has an unknown key 'batch_subslices'. Did you mean 'batch_cells'?",
    ),
    (
        "stofm-pretrain",
        {"objective": {"mask_weight": 1}},
        "objective has an unknown key 'mask_weight'. Did you mean 'mask_share'?",
    ),
    (
        "stofm-pretrain",
        {"objective": {"contrastive_weight": 1}},
        "objective has an unknown key 'contrastive_weight'. Valid keys: kind, loss, gamma,",
    ),
    (
        "stimage-pretrain",
        {"model": {"subslices": {}}},
        "model has an unknown key 'subslices'. Valid keys: preset, checkpoint, init, windows.",
    ),
    (
        "stimage-pretrain",
        {"data": {"batch_cells": 3}},
        "data has an unknown key 'batch_cells'. Did you mean 'batch_windows'?",
    ),
    (
        "stalign-pretrain",
        {"model": {"init": "informed"}},
        "model has an unknown key 'init'. Valid keys: preset, checkpoint, image_encoder, gene_encoder.",
    ),
    (
        "stalign-pretrain",
        {"objective": {"hidden_weight": 3}},
        "objective has an unknown key 'hidden_weight'. Did you mean 'niche_weight'?",
    ),
]
foreign = pytest.mark.parametrize(("stage", "sections", "says"), FOREIGN)


@foreign
def test_settings_of_another_stage_are_refused(
    tmp_path: Path, stage: str, sections: dict[str, Any], says: str
) -> None:
    """From a dict, and from a file."""
    data = short(stage, **sections)
    with pytest.raises(ConfigError, match=re.escape(says)):
        recipe_from_dict(data)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=rf"recipe\.yaml.*{re.escape(says)}"):
        load_recipe(path)


@foreign
def test_settings_of_another_stage_are_refused_by_the_command(
    refused: Any, tmp_path: Path, stage: str, sections: dict[str, Any], says: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(short(stage, **sections)))
    assert says in refused("pretrain", path)


@pytest.mark.parametrize(
    ("stage", "section", "values", "says"),
    [
        (
            "stofm-adapt",
            "data",
            {"batch_cells": 0},
            "data: batch_cells is 0; it must be at least 1",
        ),
        ("stofm-adapt", "data", {"share": 0}, "share is 0.0; it must be above 0"),
        ("stofm-adapt", "optim", {"lr": -1}, "lr is -1.0"),
        ("stofm-adapt", "optim", {"lr": float("nan")}, "lr is nan"),
        ("stofm-adapt", "optim", {"epochs": 0}, "epochs is 0"),
        ("stofm-adapt", "optim", {"max_steps": 0}, "-1 for no limit"),
        ("stofm-adapt", "optim", {"beta2": 1.0}, "beta2 is 1.0"),
        ("stofm-adapt", "run", {"checkpoint_every": 0}, "checkpoint_every is 0"),
        ("stofm-adapt", "objective", {"temperature": 0}, "temperature is 0.0"),
        (
            "stofm-adapt",
            "objective",
            {"masked_weight": 0, "contrastive_weight": 0},
            "nothing would be learned",
        ),
        ("stofm-adapt", "objective", {"thin_low": 0.9, "thin_high": 0.5}, "in order"),
        ("stofm-pretrain", "data", {"batch_subslices": 0}, "batch_subslices is 0"),
        (
            "stofm-pretrain",
            "objective",
            {"gamma": 1.5},
            "gamma is 1.5; it must be at least 0 and at most 1",
        ),
        (
            "stofm-pretrain",
            "objective",
            {"mask_share": 0.9, "kept_share": 0.2},
            "more than 1",
        ),
        ("stimage-pretrain", "data", {"windows_per_slice": -1}, "windows_per_slice is -1"),
        (
            "stimage-pretrain",
            "model",
            {"windows": {"window": 0}},
            "window and channels must be at least 1",
        ),
        ("stimage-pretrain", "objective", {"mask_share": 1.2}, "mask_share is 1.2"),
        ("stimage-pretrain", "objective", {"scheme": "spot"}, "take mask 'entry'"),
        ("stimage-pretrain", "objective", {"mask_share": 0}, "nothing would be learned"),
        ("stimage-pretrain", "objective", {"thin_high": 1.0}, "in order"),
        ("stalign-pretrain", "objective", {"temperature": 0}, "temperature is 0.0"),
        ("stalign-pretrain", "objective", {"neighbors": -1}, "neighbors is -1"),
        (
            "stalign-pretrain",
            "objective",
            {"spot_weight": 0, "niche_weight": 0, "cross_weight": 0},
            "leave nothing to be learned",
        ),
        (
            "stalign-pretrain",
            "objective",
            {"modality": "image", "cross_weight": 0},
            "leave nothing to be learned",
        ),
        ("stalign-pretrain", "data", {"batch_spots": 1}, "batch_spots is 1"),
    ],
)
def test_impossible_numbers_are_refused(
    stage: str, section: str, values: dict[str, object], says: str
) -> None:
    recipe = recipe_from_dict(short(stage))
    with pytest.raises(ConfigError, match=re.escape(says)):
        recipe.changed(**{section: values})
