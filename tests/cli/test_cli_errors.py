"""What a new user gets wrong: one line that says what is wrong, where, and how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import terrazzo as tz


@pytest.fixture
def wrong(call: Any, labeled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command beside two slices, s0 and s1; return the line of its error."""
    monkeypatch.chdir(labeled[0].parent)

    def run(line: str) -> str:
        code, _, err = call(*line.split())
        assert code == 2, err
        return next(one for one in err.splitlines() if one.startswith("error: "))

    return run


WRONG = [  # command, and what its line must say
    ("infoo s0.h5ad", ['Did you mean "info"']),
    ("corpus buidl x", ['Did you mean "build"']),
    ("info s0.h5ad --modle m", ["Did you mean --model"]),
    ("info s0.h5ad --organism mous", ['Did you mean "mouse"']),
    ("info gone.h5ad", ["gone.h5ad does not exist"]),
    (
        "domains s00.h5ad --use-rep X_t -k 3 --out d",
        ["s00.h5ad does not exist", "Did you mean s0.h5ad"],
    ),
    (
        "domains s0.h5ad --use-rep X_tt -k 3 --out d",
        ["s0.h5ad: obsm has no 'X_tt'", "Did you mean 'X_t'"],
    ),
    (
        "domains s0.h5ad --use-rep X_t -k 3 --label regoin --out d",
        ["s0.h5ad: ", "Did you mean 'region'"],
    ),
    (
        "domains s0.h5ad --use-rep X_t -k 3 --out s1.h5ad",
        ["s1.h5ad is a file", "choose another --out"],
    ),
    ("probe s0.h5ad --use-rep X_t --label regoin --out p", ["Did you mean 'region'"]),
    ("probe s0.h5ad --use-rep X_t --out p", ["--label", "--values"]),
    ("impute s0.h5ad --model pcaa --out i", ["Did you mean 'pca'"]),
    (
        "predict-genes s0.h5ad --predict s1.h5ad --model colors --out g",
        ["s0.h5ad: ", "s0.json", '"scale"'],
    ),
    (
        "info s0.h5ad --model gone",
        ["gone does not exist", "`terrazzo pretrain`", "organization/name"],
    ),
    ("info s0.h5ad --model s1.h5ad", ["s1.h5ad is a file", "must be a checkpoint"]),
    ("bench stofm-1-dlfpc", ["Did you mean 'stofm-1-dlpfc'"]),
    ("corpus info gone", ["gone does not exist", "`terrazzo corpus build`"]),
    (
        "pretrain gone.yaml",
        ["gone.yaml is neither a recipe's name nor a file", "`terrazzo recipes`"],
    ),
    ("pretrain stofm-tiny-adpt", ["Did you mean 'stofm-tiny-adapt'"]),
    ("pretrain broken.yaml", ["broken.yaml, line 3: not a readable YAML file"]),
    ("pretrain words.yaml", ["words.yaml must hold settings", "key: value"]),
    ("pretrain misspelled.yaml", ["unknown key 'corpsu'", "Did you mean 'corpus'"]),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[line for line, _ in WRONG])
def test_a_line_says_what_where_and_how(wrong: Any, line: str, said: list[str]) -> None:
    Path("broken.yaml").write_text("stage: stofm-pretrain\nmodel: [1\n")
    Path("words.yaml").write_text("hello\n")
    Path("misspelled.yaml").write_text("stage: stofm-pretrain\ncorpsu: x\n")
    told = wrong(line)
    for words in said:
        assert words in told, told


def test_help_is_offered_of_verbs_that_are_there(call: Any) -> None:
    for words, offered in (
        (["infoo"], "terrazzo --help"),
        (["corpus", "buidl"], "terrazzo corpus --help"),
    ):
        assert call(*words)[2].splitlines()[-1] == f"Try: {offered}"
    assert call("corpus", "build")[2].splitlines()[-1] == "Try: terrazzo corpus build --help"


@pytest.mark.parametrize("device", ["cdua", "cuda"])
def test_a_device_that_is_not_there(
    call: Any, labeled: list[Path], tiny_model: Any, tmp_path: Path, device: str
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    model = tiny_model().save_pretrained(tmp_path / "model")
    code, _, err = call(
        "embed", labeled[0], "--model", model, "--device", device, "--out", tmp_path / "out"
    )
    assert code == 2
    assert f"device '{device}' cannot be used; this machine has: cpu" in err


def test_misspelled_clusters_name_the_nearest_column(tiny_model: Any, labeled: list[Path]) -> None:
    with pytest.raises(tz.errors.InputError, match=r"Did you mean 'region'\?"):
        tiny_model().embed(labeled[0], clusters="regoin", progress=False)
