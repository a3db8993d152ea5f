"""Options of one system on the command line: their help, whose they are, and recipes by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import terrazzo as tz
from terrazzo.systems import registry
from terrazzo.training.recipe import recipe_from_dict


@pytest.fixture(scope="session")
def stofm(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tiny_model()
    model = tz.SToFM(base.config, base.vocabulary, provenance={"weights": "trained"})
    return model.save_pretrained(tmp_path_factory.mktemp("systems") / "stofm")


@pytest.fixture(scope="session")
def stalign(align_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return align_model().save_pretrained(tmp_path_factory.mktemp("systems") / "stalign")


@pytest.fixture
def sample(simulated: Any, tmp_path: Path) -> Path:
    path = tmp_path / "sample.h5ad"
    simulated(60).write_h5ad(path)
    return path


OPTIONS = {
    "stofm": {"--subslice-size", "--halo", "--pair", "--partition", "--clusters", "--precision"},
    "stimage": {"--layout", "--bin-um", "--window", "--seed"},
    "stalign": {"--scale", "--modality", "--spot-um", "--cache"},
    "scgpt": {"--precision", "--seed"},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_a_system_lists_its_options(call: Any, name: str, flag: str) -> None:
    code, out, err = call("embed", flag, name)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if line.startswith("  --")]
    assert {words[0] for words in lines} >= OPTIONS[name]
    assert all(len(words) > 2 for words in lines)  # what it takes, and what it does
    assert registry.systems()[name].title in out
    assert "--orthologs" not in out  # of all systems: in the verb's own help
    assert "terrazzo embed --help" in out
    assert max(map(len, out.splitlines())) <= 100


def test_a_system_that_is_not_there_names_the_nearest(call: Any) -> None:
    code, out, err = call("embed", "--help", "stfm")
    assert (code, out) == (2, "")
    assert err == "error: there is no system 'stfm'. Did you mean 'stofm'?\n"
    code, _, err = call("embed", "--help", "nosuch")
    assert code == 2
    assert "The systems are stofm, stimage, stalign, scgpt, completion." in err
    code, out, err = call("embed", "slice.h5ad", "--help")  # not a system, but a slice
    assert (code, err) == (0, "")
    assert "Usage: terrazzo embed" in out


def test_an_option_of_another_system(
    refused: Any, sample: Path, stofm: Path, stalign: Path
) -> None:
    assert (
        refused("embed", sample, "--model", stalign, "--halo", 2)
        == "error: --halo belongs to SToFM; this checkpoint is ST-Align."
    )
    assert (
        refused("embed", sample, "--model", stofm, "--bin-um", 12)
        == "error: --bin-um belongs to ST as images; this checkpoint is SToFM."
    )


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        (["--subslice-sice", "30"], "--subslice-size"),
        (["--subslice-sice=30"], "--subslice-size"),
        (["--precison", "float32"], "--precision"),
        (["--lyer", "counts"], "--layer"),
        (["--image-scal", "2"], "--image-scale"),
        (["--devise", "cpu"], "--device"),
        (["--overwite"], "--overwrite"),
        (["--dry-runn"], "--dry-run"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_misspelled_option_names_the_nearest(
    refused: Any, sample: Path, typed: list[str], nearest: str
) -> None:
    told = refused("embed", sample, "--model", "not even looked for", *typed)
    flag = typed[0].partition("=")[0]
    assert told == f"error: embed has no option {flag}. Did you mean '{nearest}'?"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--subslice-size", "many"), "subslice_size is 'many'; it must be of type int"),
        (("--partition", "hexagons"), "partition is 'hexagons'; it must be one of"),
        (("--zzzzzz", "1"), "embed has no option --zzzzzz. All options: terrazzo embed --help."),
    ],
)
def test_values_and_options_that_cannot_be(
    refused: Any, sample: Path, stofm: Path, words: tuple[str, ...], said: str
) -> None:
    assert said in refused("embed", sample, "--model", stofm, *words)


def test_the_same_in_python(simulated: Any, stofm: Path) -> None:
    model = tz.load(stofm)
    with pytest.raises(
        tz.errors.ConfigError, match="modality belongs to ST-Align; this checkpoint"
    ):
        model.embed(simulated(60), modality="genes")
    with pytest.raises(tz.errors.ConfigError, match="Did you mean 'subslice_size'"):
        model.plan(simulated(60), subslice_sice=30)


def test_recipes_are_listed_with_what_they_are(call: Any) -> None:
    code, out, err = call("recipes")
    assert (code, err) == (0, "")
    named = {line.split()[0]: line.split()[1:] for line in out.splitlines() if "  " in line}
    assert set(registry.recipe_files()) == set(named)
    assert all(len(words) > 3 for words in named.values())
    assert "terrazzo recipes show NAME > mine.yaml" in out


@pytest.mark.parametrize("name", sorted(registry.recipe_files()))
def test_a_recipe_that_is_shown_is_one(call: Any, name: str) -> None:
    code, out, err = call("recipes", "show", name)
    assert (code, err) == (0, "")
    assert out == registry.recipe_files()[name].read_text(encoding="utf-8")
    recipe = recipe_from_dict(yaml.safe_load(out))
    assert recipe == tz.load_recipe(name)
    assert recipe.stage in out.split("terrazzo recipes")[0]


def test_a_recipe_that_is_not_there(call: Any) -> None:
    code, out, err = call("recipes", "show", "stofm-tiny-adpt")
    assert (code, out) == (2, "")
    assert "Did you mean 'stofm-tiny-adapt'?" in err


def test_a_recipe_of_ones_own_is_shown_and_runs_by_its_file(call: Any, tmp_path: Path) -> None:
    text = call("recipes", "show", "stofm-tiny-adapt")[1].replace("seed: 0", "seed: 7")
    (tmp_path / "mine.yaml").write_text(text)
    assert call("recipes", "show", tmp_path / "mine.yaml")[1] == text
    assert tz.load_recipe(tmp_path / "mine.yaml").seed == 7
    code, _, err = call("pretrain", tmp_path / "mine.yaml", "--corpus", tmp_path / "gone")
    assert code == 2
    assert "gone does not exist" in err
