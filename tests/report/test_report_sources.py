"""What a report takes: slices, results, runs and folders of these; and what it says to anything else."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import terrazzo as tz
from terrazzo.errors import InputError
from terrazzo.report import results, sources
from terrazzo.tasks.results import TaskResult, tidy

LOG = "step,epoch,train/loss,val/loss\n0,0,2.0,\n1,0,1.0,1.5\n"


@pytest.fixture
def task() -> TaskResult:
    rows = [
        *tidy({"accuracy": 0.5, "macro_f1": 0.25}, "random", 0),
        *tidy({"accuracy": 0.7}, "random", 1),
        *tidy({"accuracy": 0.3}, "blocked", 0),
        *tidy({"pearson": 0.9}, "random", 0, "GENE1"),
    ]
    predictions = pd.DataFrame({"true": ["a", "b"]}, index=["c1", "c2"])
    return TaskResult("probe", pd.DataFrame(rows), predictions, {"seed": 3}, ("a note",))


@pytest.fixture
def bench() -> dict[str, Any]:
    """Return the record of a small table of terrazzo bench."""
    from terrazzo.bench import protocols, render
    from terrazzo.bench.run import COLUMNS, Table

    published = {
        "data": "other <data>",
        "rows": [{"model": "Theirs", "part": "one", "accuracy": 0.7014}],
    }
    protocol = protocols.from_dict(
        protocols.Protocol,
        {
            "name": "small",
            "title": "Small",
            "source": "data at hand",
            "task": "probe",
            "metrics": ["accuracy"],
            "label": "region",
            "parts": [{"name": "one", "dataset": "made", "test": "s"}],
            "published": published,
        },
    )
    scores = pd.DataFrame(
        [["PCA", "one", "random", "mlp3", "accuracy", 0, 0, 0.5]], columns=COLUMNS
    )
    absent = pd.DataFrame([["scGPT", "", "no weights"]], columns=["system", "part", "reason"])
    return render.to_record(
        Table(protocol, scores, absent, {"PCA": 1.0}, ("a note",), "2026-11-28"), "terrazzo bench"
    )


def test_the_scores_of_a_task(task: TaskResult, tmp_path: Path) -> None:
    task.save(tmp_path / "probe-scores")
    (found,) = sources.collect([tmp_path / "probe-scores"]).results
    whole, parts = found.grids
    assert found.title == "probe-scores: probe"
    assert whole.columns == ["split", "accuracy", "macro_f1"]
    assert whole.rows == [["random", "0.600 ± 0.100", "0.250"], ["blocked", "0.300", ""]]
    assert parts.rows == [["random", "GENE1", "0.9"]]
    assert "a note" in found.remarks
    assert json.loads(found.settings) == {"seed": 3}
    assert sources.collect([tmp_path / "probe-scores" / "result.json"]).results == [found]
    assert sources.collect([task]).results[0].grids == found.grids


def test_a_table_of_bench_and_what_was_published_stand_apart(
    bench: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "small.json").write_text(json.dumps(bench))
    (found,) = sources.collect([tmp_path / "small.json"]).results
    ours, theirs = found.grids
    assert (ours.published, theirs.published) == (False, True)
    assert ours.rows == [["PCA", "0.500"], ["scGPT", "not available"]]
    assert theirs.rows == [["Theirs", "0.7014"]]
    assert theirs.note == "other <data>"
    assert any("no weights" in remark for remark in found.remarks)


def test_published_numbers_are_set_apart_on_the_page(
    bench: dict[str, Any], tmp_path: Path, page: Any
) -> None:
    (tmp_path / "small.json").write_text(json.dumps(bench))
    made = page(tmp_path / "small.json")
    text = made.text
    start = text.index('<div class="published">')
    assert text.index("0.500") < start < text.index("0.7014")
    assert "other &lt;data&gt;" in text
    assert not made.named("section", **{"class": "slice"})
    assert "script" not in made.scripts  # nothing to draw, no script


def test_what_a_benchmark_script_wrote(tmp_path: Path) -> None:
    record = {
        "title": "Speed",
        "command": "python x.py",
        "date": "2026-11-28",
        "rows": [{"a": 1.23456, "b": None}],
    }
    (tmp_path / "speed.json").write_text(json.dumps(record | {"notes": ["slow machine"]}))
    (found,) = sources.collect([tmp_path / "speed.json"]).results
    assert found.grids[0].rows == [["1.235", ""]]
    assert (found.title, found.remarks) == ("Speed", ["slow machine"])


def test_a_folder_is_looked_through(
    simulated: Any, task: TaskResult, bench: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    (folder / "deep" / "er").mkdir(parents=True)
    simulated(30, 40).write_h5ad(folder / "deep" / "a.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # of the format of zarr, which changes between versions
        simulated(30, 40).write_zarr(folder / "b.zarr")
    task.save(folder / "scores")
    (folder / "run" / "logs").mkdir(parents=True)
    (folder / "run" / "logs" / "metrics.csv").write_text(LOG)
    (folder / "run" / "recipe.yaml").write_text("stage: adapt\n")
    (folder / "run" / "run.json").write_text("{}")
    (folder / "adapt.csv").write_text(LOG)
    (folder / "deep" / "er" / "small.json").write_text(json.dumps(bench))
    pd.DataFrame({"ARI": [0.5]}).to_csv(folder / "table.csv", index=False)
    pd.DataFrame({"x": range(1000)}).to_csv(folder / "long.csv", index=False)
    (folder / "sheet.json").write_text('{"scale": 1}')
    (folder / ".hidden.json").write_text("{}")
    for closed, mark in (("model", "model.safetensors"), ("corpus", "manifest.parquet")):
        (folder / closed).mkdir()
        (folder / closed / mark).write_text("")
        (folder / closed / "config.json").write_text("{}")
    found = sources.collect([folder, folder / "adapt.csv"])
    assert sorted(name for name, _ in found.slices) == ["a", "b"]
    assert sorted(run.name for run in found.runs) == ["adapt", "run"]
    assert {run.name: run.recipe for run in found.runs}["run"] == "stage: adapt\n"
    assert sorted(result.title for result in found.results) == ["Small", "scores: probe", "table"]
    assert found.skipped == ["long.csv", "sheet.json"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", "x", "is neither a slice nor a result"),
        ("a.json", '{"scale": 1}', "is not a result that terrazzo wrote"),
        ("a.json", "{", "is not readable JSON"),
        ("a.h5ad", "no hdf5", "cannot be read"),
        ("a.csv", "", "is not a readable table"),
        ("a.csv", "step,train/loss\n", "is not the log of a run"),
        ("a.csv", "step,train/loss\n0,one\n", "is not the log of a run"),
        ("a.csv", "x\n" + "1\n" * 1000, "is not a table for a page"),
        ("a.json", '{"title": "t", "rows": 5}', "rows are not a table"),
        ("a.json", '{"table": 1, "protocol": {}, "scores": []}', "protocol"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    name: str, content: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(tz.errors.TerrazzoError) as caught:
        tz.report.write(tmp_path / name, tmp_path / "report.html")
    assert words in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_empty_folders_and_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds nothing that a report shows"):
        sources.collect([tmp_path])
    with pytest.raises(InputError, match="does not exist"):
        sources.collect([tmp_path / "gone"])
    with pytest.raises(InputError, match="nothing is given"):
        sources.collect([])
    with pytest.raises(InputError, match="not int"):
        sources.collect([3])


def test_a_slice_without_coordinates_names_its_file(simulated: Any, tmp_path: Path) -> None:
    adata = simulated(30, 40)
    del adata.obsm["spatial"]
    adata.write_h5ad(tmp_path / "bare.h5ad")
    with pytest.raises(InputError, match=r"bare\.h5ad: .*spatial"):
        tz.report.write(tmp_path / "bare.h5ad", tmp_path / "report.html")


def test_too_many_slices(tmp_path: Path) -> None:
    for number in range(sources.SLICES + 1):
        (tmp_path / f"{number}.h5ad").write_text("")
    with pytest.raises(InputError, match="25 slices; one page shows at most 24"):
        sources.collect([tmp_path])


def test_kinds_of_json() -> None:
    assert results.kind_of([1]) == ""
    assert results.kind_of({"task": "probe", "summary": [], "format": 1}) == "task"
