"""The pages that are made from the code while the documentation is built."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import fenced
import pytest
import yaml


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


def test_every_key_of_every_recipe_has_a_row_with_a_meaning(generated: ModuleType) -> None:
    rows = {
        line.split("`")[1]: line
        for line in generated.settings().splitlines()
        if line.startswith("| `")
    }
    for recipe in (fenced.REPOSITORY / "configs").glob("*.yaml"):
        named = keys(yaml.safe_load(recipe.read_text(encoding="utf-8")))
        assert [key for key in named if key not in rows] == [], recipe.name
        assert [key for key in named if rows[key].endswith("|  |")] == [], recipe.name
    assert "`1000`" in rows["model.subslices.subslice_size"]
    assert "required" in rows["corpus"]


def test_the_command_line_is_whole(generated: ModuleType) -> None:
    text = generated.command_line()
    for verb in ("embed", "corpus build", "convert uni", "predict-genes", "report"):
        assert f" terrazzo {verb}\n" in text
    assert "--microns-per-unit" in text


def test_links_between_files_become_links_between_pages(generated: ModuleType) -> None:
    page = fenced.DOCS / "howto" / "x.md"
    text = "[a](../../README.md#b), [c](../../benchmarks/results/embed.md), [d](../input.md#e), [f](https://x.org/y.md)"
    assert generated.mended(text, page, page) == (
        "[a](../_generated/readme.md#b), [c](../_generated/results/embed.md), [d](../input.md#e), [f](https://x.org/y.md)"
    )
    readme = generated.pages()[fenced.REPOSITORY / "README.md"]
    assert (
        generated.mended("[a](docs/input.md)", fenced.REPOSITORY / "README.md", readme)
        == "[a](../input.md)"
    )


def test_the_house_page_says_of_every_file_what_it_is_for() -> None:
    page = generated.house()
    for path in (fenced.REPOSITORY / "src" / "terrazzo").rglob("*.py"):
        about = generated.first_line(path)
        assert about.endswith((".", "?")), f"{path} has no first line that says what it is for"
        assert about in page
