"""Losses as drawings: which belong together, where their points lie, and that names of lines do not collide."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from terrazzo.report import curves

COLUMNS = [
    "step",
    "epoch",
    "lr",
    "train/gradient_norm",
    "train/loss",
    "train/masked_sites",
    "train/masked",
    "val/loss",
    "val/masked_sites",
    "val/masked_sites_mean",
    "val/masked_sites_neighbors",
    "val/masked",
    "val/masked_mean",
]


def test_parts_and_what_is_trivial() -> None:
    assert curves.parts(COLUMNS) == ["masked_sites", "masked", "loss"]
    assert curves.trivial_of("masked_sites", COLUMNS) == {
        "mean": "val/masked_sites_mean",
        "neighbors": "val/masked_sites_neighbors",
    }
    assert curves.trivial_of("masked", COLUMNS) == {
        "mean": "val/masked_mean"
    }  # not those of masked_sites
    assert curves.parts(["step", "train/loss", "train/own"]) == [
        "own"
    ]  # the sum of one part is that part
    assert curves.parts(["step", "train/loss"]) == ["loss"]


def test_points_lie_where_they_should(tmp_path: Path) -> None:
    log = tmp_path / "own.csv"
    log.write_text(
        "step,epoch,train/own,val/own,val/own_mean\n0,0,4.0,,\n50,1,,2.5,3.0\n100,1,2.0,2.0,3.0\n"
    )
    run = curves.read(log, "mine")
    (panel,) = run.panels
    training, held_out = panel.lines
    assert (training.kind, held_out.kind) == ("training", "held out")
    assert (training.last, held_out.last) == (2.0, 2.0)
    first, last = [tuple(map(float, point.split(","))) for point in training.points.split()]
    assert first[0] == curves.LEFT
    assert last[0] == curves.WIDTH - curves.RIGHT
    assert first[1] < last[1]  # a higher loss is drawn higher, that is with less y
    assert len(held_out.points.split()) == 2
    (mean,) = panel.trivial
    assert (mean.name, mean.cost) == ("mean", 3.0)
    assert first[1] < mean.at < last[1]
    assert run.recipe == ""


def test_a_first_step_that_costs_much_does_not_hide_the_rest(tmp_path: Path) -> None:
    rows = ["step,train/loss", "0,1000.0", *(f"{i},{1 + 1 / i}" for i in range(1, 200))]
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    (panel,) = curves.read(tmp_path / "a.csv", "a").panels
    heights = [float(point.split(",")[1]) for point in panel.lines[0].points.split()]
    assert min(heights) == curves.TOP
    assert max(heights) - min(heights[2:]) > 100


def test_names_of_lines_do_not_collide(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "step,train/own,val/own,val/own_a,val/own_b,val/own_c\n0,2.0,2.0,1.5,1.501,1.499\n9,1.0,1.2,1.5,1.501,1.499\n"
    )
    (panel,) = curves.read(tmp_path / "a.csv", "a").panels
    heights = sorted(one.label_at for one in panel.trivial)
    assert all(b - a >= 12 for a, b in itertools.pairwise(heights))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.61, 0.64, [0.61, 0.62, 0.63, 0.64]),
        (3, 3, [3]),
        (0, 600, [0, 200, 400, 600]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert curves.ticks(low, high) == pytest.approx(expected)


def test_a_constant_loss_and_a_line_cut_short(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("step,train/loss\n0,1.0\n1,1.0\n2,1.")
    (panel,) = curves.read(tmp_path / "a.csv", "a").panels
    assert len(panel.lines[0].points.split()) == 2


SCORED = [
    "step",
    "train/loss",
    "train/niche",
    "val/niche",
    "val/niche_mean",
    "val/niche_recall_5",
    "val/niche_recall_5_chance",
    "val/spot_accuracy",
    "val/odd",
    "val/odd_chance",
]


def test_a_score_is_not_the_loss_of_a_trivial_answer() -> None:
    assert curves.scores(SCORED) == ["niche_recall_5", "spot_accuracy", "odd"]
    assert curves.trivial_of("niche", SCORED) == {"mean": "val/niche_mean"}
    assert curves.trivial_of("niche_recall_5", SCORED) == {"chance": "val/niche_recall_5_chance"}
    assert (
        curves.scores(COLUMNS) == []
    )  # nothing of which chance is known, and no score by its name
    assert curves.scores(["step", "train/recall", "val/recall"]) == []  # minimized: a loss


def test_a_score_has_a_panel_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "step,train/niche,val/niche,val/niche_recall_5,val/niche_recall_5_chance\n"
        "0,2.0,2.0,0.0,0.05\n9,1.0,1.2,0.6,0.05\n"
    )
    loss, score = curves.read(tmp_path / "a.csv", "a").panels
    assert loss.trivial == []
    assert score.title == "niche recall 5 (a score: higher is better)"
    assert [(line.kind, line.last) for line in score.lines] == [("held out", 0.6)]
    assert [(one.name, one.cost) for one in score.trivial] == [("chance", 0.05)]


@pytest.mark.parametrize(("low", "high"), [(-0.06, 0.66), (-1e-9, 1e-9), (-3, 3), (-0.05, 0.04)])
def test_zero_has_no_sign(low: float, high: float) -> None:
    shown = [f"{tick:.4g}" for tick in curves.ticks(low, high)]
    assert "0" in shown
    assert not any(text.startswith("-0") and float(text) == 0 for text in shown)
