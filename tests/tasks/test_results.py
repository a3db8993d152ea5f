"""Results: tidy, summarized, and to a folder and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import terrazzo as tz
from terrazzo.errors import InputError, OutputError
from terrazzo.tasks.results import TaskResult, tidy

NAMES = ["metrics.parquet", "predictions.parquet", "result.json"]


def result() -> TaskResult:
    rows = [
        *tidy({"accuracy": 0.5, "macro_f1": 0.25}, "random", 0),
        *tidy({"accuracy": 0.7, "macro_f1": 0.75}, "random", 1),
        *tidy({"accuracy": 0.3}, "blocked", 0),
        *tidy({"accuracy": 0.0, "pearson": float("nan")}, "random", 0, "GENE1"),
    ]
    predictions = pd.DataFrame(
        {"true": ["a", None], "random": [None, "b"]}, index=["cell-1", "cell-2"]
    )
    return TaskResult(
        "probe", pd.DataFrame(rows), predictions, {"seed": 3, "head": {"hidden": [4]}}, ("a note",)
    )


def test_rows_are_tidy() -> None:
    assert tidy({"rmse": np.float32(2)}, "cross", 1, "T cell") == [
        {"split": "cross", "number": 1, "metric": "rmse", "value": 2.0, "part": "T cell"}
    ]


def test_a_summary_leaves_parts_out() -> None:
    table = result().summary().set_index(["split", "metric"])
    assert table.loc[("random", "accuracy")].tolist() == pytest.approx([0.6, 0.1, 2])
    assert table.loc[("blocked", "accuracy")].tolist() == pytest.approx([0.3, 0.0, 1])
    assert len(table) == 3


def test_a_score_is_named_without_doubt() -> None:
    done = result()
    assert done.score("accuracy", "random") == pytest.approx(0.6)
    assert done.score("macro_f1") == pytest.approx(0.5)
    with pytest.raises(
        InputError, match=r"no single score 'accuracy'; there are: accuracy \(random\)"
    ):
        done.score("accuracy")
    with pytest.raises(InputError, match="no single score 'ari' of 'random'"):
        done.score("ari", "random")


def test_to_a_folder_and_back(tmp_path: Path) -> None:
    first = result()
    folder = first.save(tmp_path / "deep" / "out")
    assert sorted(p.name for p in folder.iterdir()) == [
        "metrics.parquet",
        "predictions.parquet",
        "result.json",
    ]
    again = TaskResult.load(folder)
    pd.testing.assert_frame_equal(again.metrics, first.metrics)
    pd.testing.assert_frame_equal(again.predictions, first.predictions)
    for name in ("task", "config", "notes", "version", "date"):
        assert getattr(again, name) == getattr(first, name)
    assert again.version == tz.__version__
    assert first.date.endswith("+00:00")
    first.save(folder)  # once more into the same folder


@pytest.mark.parametrize(
    ("file", "how", "message"),
    [
        ("result.json", None, "holds no result.json"),
        ("result.json", b"{", "is damaged"),
        ("result.json", b"{}", "is damaged"),
        ("metrics.parquet", None, "is damaged"),
        ("predictions.parquet", b"PAR1", "is damaged"),
    ],
)
def test_damaged_folders_are_refused(
    file: str, how: bytes | None, message: str, tmp_path: Path
) -> None:
    folder = result().save(tmp_path / "out")
    (folder / file).unlink()
    if how is not None:
        (folder / file).write_bytes(how)
    with pytest.raises(InputError, match=message):
        TaskResult.load(folder)


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="could not be written"):
        result().save(tmp_path / "file" / "out")


def test_a_save_that_stops_leaves_the_older_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = result().save(tmp_path / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OutputError, match="No space left"):
        result().save(folder)
    assert TaskResult.load(folder).notes == result().notes
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    with pytest.raises(OutputError, match="No space left"):
        result().save(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_result_of_others_is_not_replaced(tmp_path: Path) -> None:
    folder = result().save(tmp_path / "out")
    (folder / "thesis.tex").write_text("mine")
    other = result()
    other.predictions.index = ["cell-3", "cell-4"]
    with pytest.raises(OutputError, match="another source"):
        other.save(folder)
    assert TaskResult.load(folder).predictions.index.tolist() == ["cell-1", "cell-2"]
    other.save(folder, overwrite=True)
    assert TaskResult.load(folder).predictions.index.tolist() == ["cell-3", "cell-4"]
    assert (folder / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_file_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(OutputError, match="not written by terrazzo"):
        result().save(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "{}")]
