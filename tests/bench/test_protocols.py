"""Tables as YAML: what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from terrazzo.bench import protocols
from terrazzo.errors import ConfigError

PART = {"name": "one", "dataset": "made", "test": "s0", "train": ["s1"], "settings": ["within"]}
VARIANT = {"name": "plain"}
GENES = {
    "task": "image_to_gene",
    "label": "",
    "metrics": ["mse"],
    "gene_names": ["A"],
    "parts": [{**PART, "settings": ["cross"], "patient": "p"}],
}
SQUARES = {
    "task": "reconstruction",
    "label": "",
    "metrics": ["mse"],
    "heads": ["none"],
    "sizes": [4],
}


def test_a_table_of_ones_own(table: Any) -> None:
    found = table(
        note="ours differs", published={"data": "theirs", "rows": [{"model": "A", "accuracy": 0.5}]}
    )
    assert (found.name, found.parts[0].train, found.published.rows[0]["accuracy"]) == (
        "small",
        ["s1"],
        0.5,
    )
    assert protocols.changed(found, runs=None).runs == 2
    assert protocols.changed(found, runs=7).runs == 7


def test_an_unknown_table_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'celltype-merfish'") as error:
        protocols.load("celltype-merfsh")
    assert "stofm-1-dlpfc" in str(error.value)
    with pytest.raises(ConfigError, match=r"there is no table 'qqqqqq'\. Tables: "):
        protocols.load("qqqqqq")
    with pytest.raises(ConfigError, match=r"gone\.yaml does not exist"):
        protocols.load(tmp_path / "gone.yaml")


def test_what_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    for text, words in (
        ("name: [", "not a readable YAML file"),
        ("- 1", "must be a mapping"),
        ("name: x", "lacks title"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=words):
            protocols.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        protocols.load(path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"metrcs": ["ari"]}, "Did you mean 'metrics'"),
        ({"parts": [{**PART, "trian": []}]}, "Did you mean 'train'"),
        ({"task": "prob"}, "must be one of"),
        ({"metrics": ["acuracy"]}, "metrics names 'acuracy'; known for probe: accuracy"),
        ({"metrics": ["rmse"]}, "metrics names 'rmse'"),
        ({"metrics": []}, "metrics is empty"),
        ({"heads": ["mlp"]}, "heads names 'mlp'"),
        (
            {"task": "domains", "metrics": ["ari"], "runs": 5},
            "heads names 'linear'; known for domains: gmm",
        ),
        ({"splits": ["random", "leave-one-out"]}, "splits names 'leave-one-out'"),
        ({"runs": 0}, "runs is 0"),
        (
            {"task": "domains", "metrics": ["ari"], "heads": ["gmm"], "runs": 4},
            "at least 5 seeds, not 4",
        ),
        ({"label": ""}, "needs parts and a label"),
        ({"parts": []}, "needs parts and a label"),
        (
            {"parts": [{**PART, "settings": ["cross"], "train": []}]},
            "cross-slice and names no training slice",
        ),
        ({"parts": [{**PART, "settings": ["across"]}]}, "the setting 'across'"),
        ({"parts": [{**PART, "settings": []}]}, "no setting"),
        ({"parts": [{**PART, "train": ["s0"]}]}, "learns from the slice that it scores"),
        ({"parts": [PART, PART]}, "two parts have one name"),
        ({"published": {"rows": [{"model": "A", "part": "one"}]}}, "a model and a number"),
        ({"published": {"rows": [{"accuracy": 0.5}]}}, "a model and a number"),
        ({"published": {"rows": [{"model": "A", "accuracy": "0.5"}]}}, "a model and a number"),
        ({"variants": [VARIANT]}, "does not say how they are trained"),
        (
            {"variants": [VARIANT, VARIANT], "training": {"stofm-adapt": {}}},
            "two variants have one name",
        ),
        (
            {
                "variants": [{**VARIANT, "change": {"stofm-adpt": {"seed": 1}}}],
                "training": {"stofm-adapt": {"seed": 1}},
            },
            "variant 'plain' names the stage 'stofm-adpt', .* Did you mean 'stofm-adapt'",
        ),
        (
            {
                "variants": [{**VARIANT, "skip": ["stimage-pretrain"]}],
                "training": {"stalign-pretrain": {"seed": 1}},
            },
            "the stage 'stimage-pretrain', which training does not have. Did you mean 'stalign-",
        ),
        ({**SQUARES, "sizes": []}, "sizes are \\[\\]; name at least one"),
        ({**SQUARES, "sizes": [4, 0]}, "each at least 1"),
        ({**SQUARES, "heads": ["knn"]}, "heads names 'knn'; known for reconstruction: none"),
        ({**SQUARES, "metrics": ["pearson"]}, "known for reconstruction: mse, mae"),
        ({**SQUARES, "choose": "hvg"}, "must be one of 'variance', 'dispersion'"),
        ({**SQUARES, "parts": []}, "needs parts"),
        ({"heads": ["none"]}, "heads names 'none'"),
    ],
)
def test_what_a_table_may_not_say(table: Any, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        table(**keys)
    assert "\n" not in str(error.value)


def test_fewer_seeds_than_honest_are_refused_on_the_way_too(table: Any) -> None:
    found = table(task="domains", metrics=["ari"], heads=["gmm"], runs=5)
    with pytest.raises(ConfigError, match="at least 5 seeds"):
        protocols.changed(found, runs=1)


@pytest.mark.parametrize(
    ("given", "all_of_them"),
    [
        (["random"], ("random", "blocked")),
        (["few-shot"], ("few-shot", "blocked")),
        (["blocked"], ("blocked",)),
        (["blocked", "random"], ("blocked", "random")),
    ],
)
def test_a_split_that_leaks_space_never_stands_alone(
    table: Any, given: list[str], all_of_them: tuple
) -> None:
    assert table(splits=given).all_splits == all_of_them


def test_hidden_squares_need_no_label(table: Any) -> None:
    found = table(**SQUARES)
    assert (found.sizes, found.choose, found.bin_um) == ([4], "variance", 0.0)


def test_expression_from_histology_needs_no_label_but_genes_and_other_slices(table: Any) -> None:
    found = table(**GENES)
    assert (found.gene_names, found.genes, found.parts[0].patient) == (["A"], 50, "p")
    assert table(**{**GENES, "gene_names": []}).genes == 50


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"parts": [PART]}, r"parts with settings: \[cross\]"),
        ({"genes": 0, "gene_names": []}, "has genes or gene_names"),
        ({"metrics": ["accuracy"]}, "known for image_to_gene: mse"),
        (
            {
                "parts": [
                    {**GENES["parts"][0]},
                    {**GENES["parts"][0], "name": "two", "test": "s1", "train": ["s2"]},
                ]
            },
            "part one learns from s1, of the patient that it scores",
        ),
        (
            {
                "parts": [
                    GENES["parts"][0],
                    {
                        **GENES["parts"][0],
                        "name": "two",
                        "test": "s1",
                        "train": ["s2"],
                        "patient": "q",
                    },
                ],
                "variants": [VARIANT],
                "training": {"stalign-pretrain": {"seed": 1}},
            },
            "trained on all training slices together, and s1 is scored",
        ),
    ],
)
def test_what_a_table_of_pictures_may_not_say(table: Any, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        table(**(GENES | keys))
