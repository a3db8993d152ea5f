"""Recipes: each loads, every key has its comment, and `paper` says what the paper says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

import terrazzo as tz
from terrazzo.errors import ConfigError
from terrazzo.training.recipe import PretrainConfig, changed, load, save

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = sorted(CONFIGS.glob("st*-*.yaml"))
SCHEMES = ("patch", "spot", "multi-spot", "slice")
# settings of one system alone, which the recipes of the others need not state
OWN = {
    "stofm": (
        "adapt.",
        "pretrain.",
        "model.subslices.",
        "data.batch_cells",
        "data.batch_subslices",
        "data.block",
        "data.buffer_blocks",
    ),
    "stimage": ("patches.", "model.patches", "data.batch_windows", "data.windows_per_slice"),
    "stalign": ("align.", "model.image_encoder", "model.gene_encoder", "data.batch_spots"),
}
FOREIGN = {name: tuple(key for other in OWN if other != name for key in OWN[other]) for name in OWN}


def test_there_are_recipes_of_each_size_stage_and_scheme() -> None:
    names = {
        f"stofm-{size}-{stage}.yaml"
        for size in ("tiny", "small", "paper")
        for stage in ("adapt", "pretrain")
    }
    names |= {f"stimage-tiny-{scheme}.yaml" for scheme in SCHEMES}
    names |= {"stimage-small-patch.yaml", "stimage-paper.yaml"}
    names |= {f"stalign-{size}.yaml" for size in ("tiny", "small", "paper")}
    assert {path.name for path in RECIPES} == names


def keys(nested: dict[str, Any], prefix: str = "") -> set[str]:
    out = set()
    for key, value in nested.items():
        out |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return out


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_states_and_comments_every_key(path: Path) -> None:
    config, text = load(path), path.read_text(encoding="utf-8")
    system, size, *rest = path.stem.split("-", 2)
    assert config.model.preset == size
    if system == "stofm":
        assert [config.stage] == rest
    elif system == "stalign":
        assert (config.stage, rest) == ("align", [])
    else:
        assert (config.stage, [config.patches.scheme]) == ("patches", rest or ["patch"])
    wanted = {
        key for key in keys(dataclasses.asdict(config)) if not key.startswith(FOREIGN[system])
    }
    assert keys(yaml.safe_load(text)) == wanted
    above = ""
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#") and not line.rstrip().endswith(":"):
            assert "  # " in line or above.lstrip().startswith("#"), line
        above = line


def test_paper_is_as_published() -> None:
    adapt, pretrain = (
        load(CONFIGS / f"stofm-paper-{stage}.yaml") for stage in ("adapt", "pretrain")
    )
    for config in (adapt, pretrain):  # table A.8
        assert (config.optim.lr, config.optim.warmup_steps, config.optim.accumulate) == (
            1e-4,
            500,
            4,
        )
        cut = config.model.subslices
        assert (cut.leiden_resolution, cut.alpha, cut.subslice_size) == (1.0, 0.8, 1000)
    assert adapt.data.batch_cells == pretrain.data.batch_subslices == 16
    assert (adapt.adapt.masked_weight, adapt.adapt.contrastive_weight, adapt.adapt.own_weight) == (
        1,
        1,
        0,
    )
    assert adapt.adapt.view == "dropout"
    assert (adapt.optim.epochs, pretrain.optim.epochs) == (1, 3)  # section 4.1
    goal = pretrain.pretrain
    assert (goal.objective, goal.loss, goal.gamma, goal.frozen_epochs, goal.reencode) == (
        "paper",
        "mse",
        0.5,
        2,
        12,
    )
    assert (goal.mask_share, goal.perturb_share) == (0.1, 0.1)
    encoder, se2 = tz.preset("paper").cell_encoder, tz.preset("paper").se2
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
    config = load(CONFIGS / "stimage-paper.yaml")  # section 4.2
    optim, goal, patches = config.optim, config.patches, config.model.patches
    assert (optim.lr, optim.beta1, optim.beta2, optim.weight_decay) == (1e-4, 0.9, 0.999, 0.01)
    assert (optim.schedule, optim.epochs, config.data.batch_windows) == ("cosine", 40, 32)
    assert (goal.scheme, goal.recipe, goal.mask_share, goal.target) == (
        "patch",
        "paper",
        0.3,
        "values",
    )
    assert patches is not None
    assert (patches.window, patches.channels, patches.choose) == (16, 512, "weighted")


def test_paper_recipe_of_st_align_is_as_published() -> None:
    config = load(CONFIGS / "stalign-paper.yaml")  # sections 3.1, 3.4 and 4.1
    optim, goal = config.optim, config.align
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
    assert (goal.recipe, goal.adaptive, goal.fusion, goal.modality) == (
        "paper",
        True,
        "attention",
        "both",
    )
    assert not goal.symmetric  # eq 11
    assert not goal.exclude_neighbors


def test_schemes_differ_in_the_scheme_alone() -> None:
    def settings(scheme: str) -> dict[str, Any]:
        whole = dataclasses.asdict(load(CONFIGS / f"stimage-tiny-{scheme}.yaml", out="out"))
        del (
            whole["patches"]["scheme"],
            whole["patches"]["mask"],
        )  # a site that sees no other cannot be hidden
        return whole

    assert settings("patch") == settings("spot") == settings("multi-spot") == settings("slice")


def test_round_trip(tmp_path: Path) -> None:
    config = load(RECIPES[0], corpus="here", out="there", seed=3)
    assert (config.corpus, config.out, config.seed) == ("here", "there", 3)
    save(config, tmp_path / "recipe.yaml")
    assert load(tmp_path / "recipe.yaml") == config


def test_changed_changes_what_is_given() -> None:
    config = PretrainConfig("adapt", "c", "o")
    assert changed(config, run={"devices": None}) == config
    assert changed(config, run={"devices": 2}, optim={"max_steps": 7}).run.devices == 2
    with pytest.raises(ConfigError, match="'devices'"):
        changed(config, run={"device": 2})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "stage: adapt\ncorpus: c\nout: o\noptim: {learning_rate: 1}",
            "optim has an unknown key 'learning_rate'",
        ),
        (
            "stage: adapt\ncorpus: c\nout: o\noptim: {warm_up_steps: 1}",
            "Did you mean 'warmup_steps'",
        ),
        (
            "stage: adapt\ncorpus: c\nout: o\nmodel: {subslices: {split_sise: 1}}",
            "Did you mean 'subslice_size'",
        ),
        (
            "stage: adopt\ncorpus: c\nout: o",
            "must be one of 'adapt', 'pretrain', 'patches', 'align'",
        ),
        (
            "stage: adapt\ncorpus: c\nout: o\nrun: {strategy: magic}",
            "must be one of 'auto', 'ddp', 'fsdp'",
        ),
        ("stage: adapt\nout: o", "lacks corpus"),
        (
            "stage: adapt\ncorpus: c\nout: o\noptim: {lr: 1e-4}",
            "must be of type float",
        ),  # YAML 1.1 reads a string
        ("stage: patches\ncorpus: c\nout: o\nseed: -1", "seed is -1; it must be at least 0"),
        ("- a", "must hold settings"),
        ("a: [", "not a readable YAML"),
    ],
)
def test_bad_recipes_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        load(path)


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        ("data", {"batch_cells": 0}, "data: batch_cells is 0; it must be at least 1"),
        ("data", {"share": 0}, "share is 0.0; it must be above 0"),
        ("optim", {"lr": -1}, "lr is -1.0"),
        ("optim", {"lr": float("nan")}, "lr is nan"),
        ("optim", {"epochs": 0}, "epochs is 0"),
        ("optim", {"max_steps": 0}, "-1 for no limit"),
        ("adapt", {"temperature": 0}, "temperature is 0.0"),
        ("adapt", {"masked_weight": 0, "contrastive_weight": 0}, "nothing would be learned"),
        ("adapt", {"thin_low": 0.9, "thin_high": 0.5}, "in order"),
        ("pretrain", {"gamma": 1.5}, "gamma is 1.5; it must be at least 0 and at most 1"),
        ("pretrain", {"mask_share": 0.9, "kept_share": 0.2}, "more than 1 together"),
        ("data", {"windows_per_slice": -1}, "windows_per_slice is -1"),
        ("model", {"patches": {"window": 0}}, "window and channels must be at least 1"),
        ("optim", {"beta2": 1.0}, "beta2 is 1.0"),
        ("patches", {"mask_share": 1.2}, "mask_share is 1.2"),
        ("patches", {"scheme": "spot"}, "take mask 'entry'"),
        ("patches", {"mask_share": 0}, "nothing would be learned"),
        ("patches", {"thin_high": 1.0}, "in order"),
        ("align", {"temperature": 0}, "temperature is 0.0"),
        ("align", {"neighbors": -1}, "neighbors is -1"),
        (
            "align",
            {"spot_weight": 0, "niche_weight": 0, "cross_weight": 0},
            "leave nothing to be learned",
        ),
        ("align", {"modality": "image", "cross_weight": 0}, "leave nothing to be learned"),
        ("data", {"batch_spots": 1}, "batch_spots is 1"),
        ("run", {"checkpoint_every": 0}, "checkpoint_every is 0"),
    ],
)
def test_impossible_numbers_are_refused(section: str, values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        changed(PretrainConfig("adapt", "c", "o"), **{section: values})
