"""The pages that are made from the code while the documentation is built."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import fenced
import pytest
import yaml

from terrazzo.systems import registry


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    """Load docs/generated.py, which no package holds."""
    spec = importlib.util.spec_from_file_location("docs_generated", fenced.DOCS / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keys(settings: dict, before: str = "") -> list[str]:
    """Return the dotted keys of a recipe."""
    found = []
    for name, value in settings.items():
        found += keys(value, f"{before}{name}.") if isinstance(value, dict) else [f"{before}{name}"]
    return found


def tables(page: str) -> dict[str, dict[str, str]]:
    """Return the rows of each section of the page of settings, by key."""
    out = {}
    for section in page.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        out[title.strip("`")] = {
            line.split("`")[1]: line for line in lines if line.startswith("| `")
        }
    return out


def test_every_key_of_every_recipe_has_a_row_with_a_meaning(generated: ModuleType) -> None:
    sections = tables(generated.settings())
    assert len(sections) == 6
    recipes = registry.recipe_files()
    assert len(recipes) > 10
    for name, file in recipes.items():
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
        rows = sections["All stages"] | sections[recipe["stage"]]
        named = keys(recipe)
        assert [key for key in named if key not in rows] == [], name
        assert [key for key in named if rows[key].endswith("|  |")] == [], name
    assert "`1000`" in sections["stofm-pretrain"]["model.subslices.subslice_size"]
    assert "required" in sections["All stages"]["corpus"]
    assert "data.batch_subslices" not in sections["stofm-adapt"]  # another stage's


def test_the_command_line_is_whole(generated: ModuleType) -> None:
    text = generated.command_line()
    for verb in ("embed", "corpus build", "convert", "recipes show", "predict-genes", "report"):
        assert f" terrazzo {verb}\n" in text
    assert "--microns-per-unit" in text
    for option in ("--subslice-size", "--bin-um", "--modality"):  # of one system
        assert f"  {option} " in text


def test_links_between_files_become_links_between_pages(generated: ModuleType) -> None:
    page = fenced.DOCS / "howto" / "x.md"
    text = "[a](../../README.md#b), [c](../../benchmarks/results/embed.md), [d](../input.md#e), [f](https://x.org/y.md)"
    assert generated.with_page_links(text, page, page) == (
        "[a](../_generated/readme.md#b), [c](../_generated/results/embed.md), [d](../input.md#e), [f](https://x.org/y.md)"
    )
    readme = generated.pages()[fenced.REPOSITORY / "README.md"]
    assert (
        generated.with_page_links("[a](docs/input.md)", fenced.REPOSITORY / "README.md", readme)
        == "[a](../input.md)"
    )


def test_the_house_page_says_of_every_file_what_it_is_for(generated: ModuleType) -> None:
    page = generated.house()
    for path in (fenced.REPOSITORY / "src" / "terrazzo").rglob("*.py"):
        about = generated.first_line(path)
        assert about.endswith((".", "?")), f"{path} has no first line that says what it is for"
        assert about in page


def test_the_page_of_input_has_every_kind_that_is_tested(generated: ModuleType) -> None:
    page = (fenced.DOCS / "input.md").read_text(encoding="utf-8")
    assert generated.with_input_kinds(page) == page, "run: python docs/generated.py"
    for path in (fenced.REPOSITORY / "tests").rglob("test_*.py"):
        for kind, given, gets in generated.cases(path):
            assert kind in generated.KINDS
            assert f"| {given} | {gets} |" in page
