"""The one reader of JSON and the one of YAML: what each kind of hostile or damaged text gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from terrazzo.config import from_dict
from terrazzo.errors import CheckpointError, ConfigError, InputError, printable, shortened
from terrazzo.parsing import (
    MAX_YAML,
    parse_json,
    parse_yaml,
    read_json,
    read_object,
    read_text,
    read_yaml,
)
from terrazzo.training.recipe import load_recipe


@dataclass(frozen=True)
class Holder:
    a: int = 0


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12)
)


@pytest.mark.case(
    "M",
    given="A JSON file that is damaged, nested without end, with repeated keys, NaN, or numbers of thousands of digits",
    gets="One line with the file and what is wrong",
)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not readable JSON"),
        (b"", "not readable JSON"),
        (b"\xff", "not text in UTF-8"),
        (b"[" * 10**5, "nested too deeply"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "'a' repeats"),
        (b"[NaN]", "NaN is no finite number"),
        (b"[-Infinity]", "no finite number"),
        (b"[1e999]", "no finite number"),
        (b"[" + b"9" * 6000 + b"]", "6,000 digits"),
        (b'"\\ud800' + b"x" * 200 + b"\n", "not readable JSON"),
    ],
)
def test_json(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_json(path, CheckpointError)
    assert "a.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_json_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null, true, "\xc3\xa9"]}')
    assert read_object(path) == {"a": [1, 2.5, None, True, "é"]}
    assert parse_json("[NaN, 1e999]", "x", finite=False)[1] == float("inf")
    assert parse_json("18446744073709551615", "x") == 2**64 - 1
    path.write_text("[]")
    with pytest.raises(InputError, match="must be a JSON object, not list"):
        read_object(path, InputError)


def test_files_that_are_no_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text(tmp_path / "gone")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text("x" * 5000)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text("a\0b")
    (tmp_path / "long").write_bytes(b" " * 101)
    with pytest.raises(ConfigError, match="more than 100 bytes"):
        read_text(tmp_path / "long", max_bytes=100)


@pytest.mark.case(
    "M",
    given="A YAML file whose aliases stand for billions of values, that contains itself, or names Python objects",
    gets="One line with the file, at once",
)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "line 1: not a readable YAML file"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "[" * 100 + "]" * 100, "nested too deeply"),
        (BOMB, "with those of its aliases"),
        ("a: &a [*a]", "contains itself"),
        ("a: 1\na: 2", "line 2: .*'a' repeats"),
        ("a: .nan", "no finite number"),
        ("a: -.inf", "no finite number"),
        ("a: " + "9" * 400, "more than 40 digits"),
        ("a: " + "9" * 5000, "not a readable YAML file"),
        ("? [1]\n: 2", "a list or a mapping"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("!!timestamp x", "not a readable YAML file"),
        ("!!int ''", "not a readable YAML file"),
        ("a: 1\n--- \nb: 2", "not a readable YAML file"),
        ("a: \x00", "not a readable YAML file"),
        (" " * (MAX_YAML + 1), "that is not a file of settings"),
    ],
)
def test_yaml(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_yaml(path)
    assert "a.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_yaml_is_fine() -> None:
    assert parse_yaml("out: 2020-13-45", "x") == {
        "out": "2020-13-45"
    }  # no date: a folder may be called so
    assert parse_yaml("", "x") is None
    merged = parse_yaml("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n", "x")
    assert merged["b"] == {"x": 3, "y": 2}
    assert parse_yaml("a: &a [1]\nb: *a", "x") == {"a": [1], "b": [1]}


def test_a_recipe_of_absurd_values_is_one_short_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    start = "stage: stofm-cells\ncorpus: c\nout: o\n"
    for line in (
        "seed: " + "9" * 39,
        "optim: {lr: " + "9" * 39 + "}",
        "optim: {" + "l" * 5000 + ": 1}",
        "seed: [" + "1, " * 5000 + "1]",
    ):
        path.write_text(start + line)
        with pytest.raises(ConfigError) as caught:
            load_recipe(path)
        assert len(str(caught.value)) < 1000
    with pytest.raises(ConfigError, match="neither a recipe's name nor a file"):
        load_recipe("x" * 5000)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        b"x" * 10**6,
        list(range(10**5)),
        {"a": "y" * 10**5},
        10**4000,
        object(),
        ValueError("z" * 10**5),
    ],
)
def test_values_in_messages_are_short(value: Any) -> None:
    assert len(shortened(value)) <= 80
    with pytest.raises(ConfigError) as caught:
        from_dict(Holder, {"a": value, "b" * 3000: 1})
    assert len(str(caught.value)) < 500


def test_a_terminal_is_not_obeyed() -> None:
    assert printable("a\x1b[31m\udcff\nb") == "a\\x1b[31m\\udcff\nb"
    assert len(printable("x" * 10**6)) == 4000
    assert shortened("a\nb\x07", quoted=False) == "a b\\x07"


def test_a_misspelled_word_of_a_million_letters() -> None:
    with pytest.raises(ConfigError, match="unknown key"):  # and not after hours of comparing
        from_dict(Holder, {"ab" * 10**6: 1})
