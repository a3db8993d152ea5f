"""A table that was stopped goes on: finished rows are taken over, unless anything that they came from has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from terrazzo.bench import rows as stored_rows
from terrazzo.bench import run as running
from terrazzo.bench.entries import Entry, resolve
from terrazzo.bench.run import run
from terrazzo.bench.samples import KEY, Sample
from terrazzo.errors import OutputError


class Counted:
    """An entry that counts how often it embedded, and can be interrupted."""

    def __init__(self) -> None:
        self.times, self.stop = 0, False

    def fit(self, slices: Any) -> Any:
        def write(adata: Any) -> None:
            if self.stop:
                raise KeyboardInterrupt
            self.times += 1
            adata.obsm[KEY] = np.random.default_rng(0).normal(size=(adata.n_obs, 4))

        return write


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let two counting entries take part, beside PCA."""
    first, second = Counted(), Counted()

    def resolved(*given: Any) -> list[Entry]:
        trivial = [s for s in resolve(*given) if s.title == "PCA"]
        return [
            *trivial,
            Entry("First", first.fit, mark="a"),
            Entry("Second", second.fit, mark="b"),
        ]

    monkeypatch.setattr(running, "resolve", resolved)
    return first, second


def test_goes_on_where_it_stopped(
    table: Any, data_folder: Path, tmp_path: Path, counted: Any
) -> None:
    first, second = counted
    whole = run(table(), data=data_folder)
    second.stop = True
    with pytest.raises(KeyboardInterrupt):
        run(table(), data=data_folder, rows=tmp_path / "rows")
    assert len(list((tmp_path / "rows").iterdir())) == 2  # PCA and the first
    done, second.stop, said = first.times, False, []
    found = run(table(), data=data_folder, rows=tmp_path / "rows", say=said.append)
    assert first.times == done
    assert second.times == 2
    assert [("from an earlier run" in line) for line in said] == [True, True, False]
    pd.testing.assert_frame_equal(found.scores, whole.scores)
    assert found.notes == whole.notes
    assert found.seconds.keys() == whole.seconds.keys()


def test_seeds_of_one_title_are_told_apart(
    table: Any, data_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    one, two = Counted(), Counted()
    systems = [Entry("Twice", one.fit, mark="a"), Entry("Twice", two.fit, mark="b")]
    monkeypatch.setattr(running, "resolve", lambda *given: systems)
    for _ in range(2):
        found = run(table(), data=data_folder, rows=tmp_path)
        assert set(found.scores["seed"]) == {0, 1}
        assert (one.times, two.times) == (1, 1)


@pytest.mark.parametrize("changes", [{"heads": ["knn"]}, {"runs": 1}, {"label": "cell_type"}])
def test_another_table_takes_nothing_over(
    table: Any, data_folder: Path, tmp_path: Path, counted: Any, changes: dict[str, Any]
) -> None:
    run(table(), data=data_folder, rows=tmp_path / "rows")
    before = counted[0].times
    run(table(**changes), data=data_folder, rows=tmp_path / "rows")
    assert counted[0].times == before + 1


def test_other_weights_slices_or_code_take_nothing_over(
    table: Any, data_folder: Path, tmp_path: Path, counted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again() -> int:
        before = counted[0].times
        run(table(), data=data_folder, rows=tmp_path / "rows")
        return counted[0].times - before

    assert [again(), again()] == [1, 0]
    other = [Entry("First", counted[0].fit, mark="other weights")]
    with monkeypatch.context() as patch:
        patch.setattr(running, "resolve", lambda *given: other)
        assert [again(), again()] == [1, 0]
    read = Sample.read.__func__

    def changed(cls: type[Sample], *given: Any, **more: Any) -> Sample:
        sample = read(cls, *given, **more)
        sample.labeled.obs["region"] = sample.labeled.obs["region"].to_numpy()[::-1]
        return sample

    with monkeypatch.context() as patch:
        patch.setattr(Sample, "read", classmethod(changed))
        assert [again(), again()] == [1, 0]
    monkeypatch.setattr(stored_rows, "_code", lambda: "other code")
    assert [again(), again()] == [1, 0]


def test_unmarked_and_failed_rows_are_not_kept_and_damaged_ones_are_made_again(
    table: Any, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked, unmarked = Counted(), Counted()
    systems = [Entry("Marked", marked.fit, mark="a"), Entry("Unmarked", unmarked.fit)]
    monkeypatch.setattr(running, "resolve", lambda *given: systems)
    run(table(), data=data_folder, rows=tmp_path / "rows")
    (file,) = (tmp_path / "rows").iterdir()
    file.write_text(file.read_text().replace("accuracy", "macro_f1"))
    found = run(table(), data=data_folder, rows=tmp_path / "rows")
    assert (marked.times, unmarked.times) == (2, 2)
    assert set(found.scores["metric"]) == {"accuracy", "macro_f1"}


def test_a_folder_that_cannot_be_written_says_so(
    table: Any, data_folder: Path, tmp_path: Path, counted: Any
) -> None:
    (tmp_path / "rows").write_text("a file")
    with pytest.raises(OutputError, match="could not be written"):
        run(table(), data=data_folder, rows=tmp_path / "rows")


def test_content_ignores_what_a_table_writes(data_folder: Path) -> None:
    def read() -> Sample:
        return Sample.read("made", "s0", "region", data_folder)

    one, two, three = read(), read(), read()
    two.take(np.ones((two.labeled.n_obs, 2)), {"blocks": {}})
    three.labeled.obsm["X_given"][0, 0] += 1
    assert one.content == two.content != three.content
