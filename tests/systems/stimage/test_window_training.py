"""ST as images in training: what is hidden and predicted, in which scheme, from which weights, and what is logged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

import terrazzo as tz
from terrazzo import simulate
from terrazzo.corpus.loader import Shard
from terrazzo.corpus.store import Corpus
from terrazzo.errors import ConfigError
from terrazzo.systems.stimage import masking
from terrazzo.systems.stimage.counts import SiteCounts
from terrazzo.systems.stimage.masking import MaskedWindows, thin_window
from terrazzo.systems.stimage.network import nearest
from terrazzo.systems.stimage.recipe import STImageObjective, STImageRecipe
from terrazzo.systems.stimage.stages import Pretrain, site_store, squared_error
from terrazzo.systems.stimage.windows import Window
from terrazzo.training.logs import read
from terrazzo.training.recipe import OptimConfig, recipe_from_dict
from terrazzo.training.stage import rate

SPOTS, GENES = 250, 120
SCHEMES = ("patch", "spot", "multi-spot", "slice")
HIDDEN = "masked_sites"
INFORMED = {"init": "informed", "windows": {"window": 6, "channels": 80, "choose": "spatial"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a corpus of three training slices and a held-out one."""
    from terrazzo.corpus.splits import Splits

    place = tmp_path_factory.mktemp("windows")
    options: dict[str, Any] = {"layout": "visium", "n_genes": GENES, "seed": 2, "n_donors": 4}
    for number, adata in enumerate(simulate.corpus(4, SPOTS, **options)):
        adata.write_h5ad(place / f"s{number}.h5ad")
    files, splits = sorted(place.glob("*.h5ad")), Splits("slice", validation=0.25)
    quiet: dict[str, Any] = {"scheduler": "synchronous", "progress": False}
    return Path(
        tz.build_corpus(files, place / "corpus", min_genes=0, splits=splits, **quiet).folder
    )


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Callable[..., STImageRecipe]:
    """Make a short recipe; keywords change its sections."""

    def make(scheme: str = "patch", out: str = "run", **sections: Any) -> STImageRecipe:
        base: dict[str, Any] = {
            "stage": "stimage-pretrain",
            "corpus": str(folder),
            "out": str(tmp_path / out),
            "model": {
                "preset": "tiny",
                "windows": {"window": 6, "channels": 16, "choose": "spatial"},
            },
            "data": {"batch_windows": 3, "windows_per_slice": 4},
            "optim": {"lr": 1e-3, "epochs": 2, "warmup_steps": 1, "schedule": "cosine"},
            "objective": {
                "scheme": scheme,
                "mask": "site" if scheme == "patch" else "entry",
                "target": "thinned",
            },
            "run": {"accelerator": "cpu", "log_every": 1, "checkpoint_every": 2},
        }
        for name, values in sections.items():
            base[name] = {**base[name], **values} if isinstance(values, dict) else values
        made = recipe_from_dict(base)
        assert isinstance(made, STImageRecipe)
        return made

    return make


@pytest.fixture
def stage_of(recipe: Any) -> Callable[..., Pretrain]:
    """Make the stage of a short recipe."""

    def make(*args: Any, **sections: Any) -> Pretrain:
        chosen = recipe(*args, **sections)
        return Pretrain(chosen, Corpus.open(chosen.corpus), progress=False)

    return make


@pytest.fixture
def opened(stage_of: Any) -> Callable[..., tuple[Pretrain, list[MaskedWindows]]]:
    """Return a function that makes a stage and the batches of its training split."""

    def make(*args: Any, **sections: Any) -> tuple[Pretrain, list[MaskedWindows]]:
        stage = stage_of(*args, **sections)
        return stage, list(stage.loader("train"))

    return make


def equal(one: MaskedWindows, other: MaskedWindows) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


# ---- runs


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_trains_and_leaves_a_model(recipe: Any, stage_of: Any, scheme: str) -> None:
    short = {"optim": {"max_steps": 2}, "model": {"init": "informed"}}
    config = recipe(scheme, **short)
    model = tz.load(tz.pretrain(config, progress=False))
    assert isinstance(model, tz.STImage)
    assert (model.trained, model.config.scheme, model.provenance["steps"]) == (True, scheme, 2)
    assert model.provenance["scheme"] == scheme
    assert model.provenance["started from"] == "informed weights, preset tiny, seed 0"
    assert model.module.autocorrelation.max() > 0
    rows = read(Path(config.out) / "logs" / "metrics.csv")
    logged = {name for row in rows for name, value in row.items() if value}
    part = "masked_sites" if scheme == "patch" else "masked_entries"
    for name in (part, "visible"):
        assert {
            f"train/{name}",
            f"val/{name}",
            f"val/{name}_mean",
            f"val/{name}_neighbors",
        } <= logged
        assert f"train/{name}_mean" not in logged
    numbers = [float(v) for row in rows for v in row.values() if v]
    assert np.isfinite(numbers).all()
    before = stage_of(scheme, **short).initial_model().module.state_dict()
    after = model.module.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    torch.testing.assert_close(before["autocorrelation"], after["autocorrelation"])
    adata = simulate.tissue(40, layout="visium", n_genes=GENES, seed=9)
    assert np.isfinite(model.embed(adata, progress=False).obsm["X_stimage"]).all()


def test_paper_flavor(recipe: Any) -> None:
    paper = {"flavor": "paper", "mask": "entry", "target": "values", "visible_weight": 0.0}
    windows = {"window": 6, "channels": 16}
    config = recipe(optim={"max_steps": 2}, objective=paper, model={"windows": windows})
    model = tz.load(tz.pretrain(config, progress=False))
    assert (model.config.normalize, model.config.standardize, model.config.output) == (
        "paper",
        False,
        "encoder",
    )
    assert model.config.vit.positions == "sincos"
    rows = [row for row in read(Path(config.out) / "logs" / "metrics.csv") if row["val/loss"]]
    last = rows[-1]
    assert last["val/loss"] == last["val/masked_entries"]
    # of raw values the answer to beat is the slice's mean, which two steps from random weights do not reach
    assert float(last["val/masked_entries_mean"]) < float(last["val/loss"])
    assert "val/visible" not in last


def test_training_continues_with_the_very_next_batch(recipe: Any) -> None:
    from lightning import Callback

    class Stop(BaseException):
        pass

    class Follow(Callback):
        def __init__(self, last: int | None = None) -> None:
            self.seen: list[MaskedWindows] = []
            self.last = last

        def on_train_batch_end(
            self, trainer: Any, module: Any, out: Any, batch: Any, index: int
        ) -> None:
            self.seen.append(batch)
            if len(self.seen) == self.last:
                raise Stop

    whole, killed, resumed = Follow(), Follow(6), Follow()
    tz.pretrain(recipe(out="whole"), progress=False, callbacks=[whole])
    with pytest.raises(Stop):
        tz.pretrain(recipe(out="killed"), progress=False, callbacks=[killed])
    folder = tz.pretrain(recipe(out="killed"), progress=False, callbacks=[resumed], resume=True)
    assert len(whole.seen) == 8
    assert len(resumed.seen) in (2, 4)  # from the last checkpoint on, every second step
    after = whole.seen[-len(resumed.seen) :]
    assert all(equal(a, b) for a, b in zip(resumed.seen, after, strict=True))
    one, other = (
        tz.load(p).module.state_dict() for p in (folder, folder.parents[1] / "whole" / "model")
    )
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_validation_sees_the_same_every_time(recipe: Any) -> None:
    config = recipe(optim={"lr": 0.0, "epochs": 3, "max_steps": -1, "weight_decay": 0.0})
    tz.pretrain(config, progress=False)
    rows = [r for r in read(Path(config.out) / "logs" / "metrics.csv") if r["val/loss"]]
    assert len(rows) == 4  # the start, and three epochs
    assert len({tuple(v for k, v in r.items() if k.startswith("val/")) for r in rows}) == 1


def test_a_checkpoint_is_trained_further_by_its_scheme_alone(stage_of: Any, tmp_path: Path) -> None:
    model = stage_of().initial_model()
    model.module.mask_token.data.fill_(0.5)
    source = {"checkpoint": str(model.save_pretrained(tmp_path / "patch"))}
    again = stage_of(model=source).initial_model()
    assert again.module.mask_token[0] == 0.5
    assert again.config == model.config
    other = stage_of(model={**source, "windows": {"window": 9}}).initial_model()
    assert (other.config.windows.window, other.config.vit) == (9, model.config.vit)
    same = stage_of(model={**source, "windows": None}).initial_model()
    assert same.config == model.config  # where the recipe has no windows, they are the checkpoint's
    with pytest.raises(ConfigError, match=r"scheme 'patch', not 'spot'"):
        stage_of("spot", model=source).initial_model()
    stofm = tz.SToFM("tiny", model.vocabulary).save_pretrained(tmp_path / "stofm")
    with pytest.raises(ConfigError, match="holds a SToFM"):
        stage_of(model={"checkpoint": str(stofm)}).initial_model()


# ---- batches


@pytest.mark.parametrize("mask", ["site", "entry"])
@pytest.mark.parametrize("target", ["values", "thinned"])
def test_what_is_hidden_and_predicted(opened: Any, mask: str, target: str) -> None:
    _, batches = opened(objective={"mask": mask, "target": target})
    assert sum(len(b) for b in batches) == 12
    shares = []
    for batch in batches:
        assert batch.values.shape == batch.target.shape == batch.hidden.shape == (3, 36, 16)
        present = batch.shown | batch.hidden.any(dim=-1)
        assert batch.cells == present.sum()
        assert not (batch.hidden & batch.visible).any()
        assert (batch.values[batch.hidden] == 0).all()
        assert (batch.values[~batch.shown] == 0).all()
        assert batch.shown.any(dim=1).all()
        assert (batch.mean == 0).all()  # standardized
        if mask == "site":
            assert (batch.hidden.all(dim=-1) == batch.hidden.any(dim=-1)).all()
            assert not (batch.shown & batch.hidden[..., 0]).any()
            assert (batch.hidden[..., 0].sum(dim=1) == (0.3 * present.sum(dim=1)).round()).all()
        shares.append(float(batch.hidden.sum() / (present.sum() * 16)))
        assert bool(batch.visible.any()) == (target == "thinned")
    assert np.mean(shares) == pytest.approx(0.3, abs=0.03)


def test_targets_are_the_values_of_the_counts(opened: Any) -> None:
    stage, batches = opened(objective={"target": "values", "mask": "entry"})
    batch = batches[0]
    genes, hidden = batch.genes[0], batch.hidden[0]
    name = batch.ids[0]
    store = site_store(stage.corpus, stage.model)
    grid, scale = store.grid(name), store.scale(name)
    whole = scale.standardize(
        store.values(name, grid.occupied)[:, genes.numpy()].toarray(), genes.numpy()
    )
    known = {tuple(row) for row in whole.round(4).tolist()}
    present = batch.shown[0]
    assert {tuple(row) for row in batch.target[0][present].numpy().round(4).tolist()} <= known
    torch.testing.assert_close(
        batch.values[0][present], batch.target[0][present].masked_fill(hidden[present], 0)
    )
    assert (np.diff(genes.numpy()) > 0).all()
    order = np.argsort(-stage.model.autocorrelation[store.measured(name)], kind="stable")[:16]
    assert set(genes.tolist()) == set(store.measured(name)[order].tolist())


def test_draws_depend_on_the_window_not_on_the_batch(opened: Any) -> None:
    _, ones = opened(data={"batch_windows": 1})
    _, large = opened(data={"batch_windows": 4})
    assert len(ones) == 12
    for at, batch in enumerate(large):
        for place in range(4):
            torch.testing.assert_close(batch.values[place], ones[4 * at + place].values[0])


def test_ranks_have_windows_of_their_own(stage_of: Any) -> None:
    def seen(rank: int, world: int, size: int) -> list[bytes]:
        stage = stage_of(data={"batch_windows": size})
        return [
            w.numpy().tobytes() for b in stage.loader("train", Shard(rank, world)) for w in b.values
        ]

    first, second, alone = seen(0, 2, 2), seen(1, 2, 2), seen(0, 1, 4)
    assert not set(first) & set(second)
    assert sorted(first + second) == sorted(alone)


def test_counts_are_split_in_two() -> None:
    rng = np.random.default_rng(0)
    whole = sparse.random(400, 50, density=0.5, random_state=0, format="csr")
    whole.data = rng.integers(1, 9, len(whole.data)).astype(np.float32)
    whole.data[::2] = 1
    chosen = sparse.csr_matrix(whole[:, :20])
    totals = np.asarray(whole.sum(axis=1)).ravel()
    window = Window(SiteCounts.of(whole), totals, totals > 0, np.zeros((400, 2), np.float32))
    objective = STImageObjective(target="thinned", thin_low=0.3, thin_high=0.5)
    part, rest = thin_window(window, chosen, objective, rng)
    np.testing.assert_array_equal((part.counts + rest.counts).toarray(), chosen.toarray())
    np.testing.assert_array_equal(part.totals + rest.totals, totals)
    for one in (part, rest):
        assert one.counts.data.min() >= 0
        assert (one.totals >= np.asarray(one.counts.sum(axis=1)).ravel()).all()
    rates = part.totals / np.maximum(totals, 1)
    assert rates.mean() == pytest.approx(0.4, abs=0.01)
    singles = chosen.data == 1
    kept = part.counts.data
    assert kept[singles].mean() == pytest.approx(0.4, abs=0.03)
    assert kept[~singles].sum() / chosen.data[~singles].sum() == pytest.approx(0.4, abs=0.02)
    some = np.arange(400) % 3 > 0
    part, rest = thin_window(window, chosen, objective, rng, some)
    np.testing.assert_array_equal(part.counts[~some].toarray(), chosen[~some].toarray())
    np.testing.assert_array_equal(part.totals[~some], totals[~some])
    assert rest.totals[~some].sum() == rest.counts[~some].sum() == 0
    assert (part.totals / np.maximum(totals, 1))[some].mean() == pytest.approx(0.4, abs=0.01)


def test_a_window_with_one_site_is_shown() -> None:
    objective = STImageObjective()
    rng = np.random.default_rng(0)
    for n, hidden in [(0, 0), (1, 0), (2, 1), (3, 1), (10, 3)]:
        usable = np.zeros(16, dtype=bool)
        usable[:n] = True
        assert masking._hidden(usable, 4, objective, rng).all(axis=1).sum() == hidden
    everything = dataclasses.replace(objective, mask_share=1.0)
    assert masking._hidden(usable, 4, everything, rng).all(axis=1).sum() == 9  # never all


def test_windows_with_fewer_genes_are_padded(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from terrazzo.systems.stimage.sites import SiteStore

    plain = SiteStore._measured
    monkeypatch.setattr(
        SiteStore, "_measured", lambda self, id: plain(self, id)[: 9 if id == "s0" else 120]
    )
    stage, batches = opened()
    objective = stage.objective()
    lengths = set()
    for batch in batches:
        for place, name in enumerate(batch.ids):
            known = batch.genes[place] >= 0
            lengths.add((name == "s0", int(known.sum())))
            assert not batch.hidden[place][:, ~known].any()
            assert not batch.visible[place][:, ~known].any()
        assert torch.isfinite(objective.losses(batch)["loss"])
    assert lengths <= {(True, 9), (False, 16)}
    assert len(lengths) == 2


# ---- losses


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mode", [True, False], ids=["training", "validation"])
def test_empty_sites_reach_no_loss(opened: Any, loud: Any, scheme: str, mode: bool) -> None:
    stage, batches = opened(scheme, model={"windows": {"window": 16, "channels": 16}})
    loud(stage.model.module)
    objective = stage.objective().train(mode)
    batch = batches[0]
    empty = ~(batch.shown | batch.hidden.any(dim=-1))
    assert empty.any()
    clean = objective.losses(batch)
    values, target = batch.values.clone(), batch.target.clone()
    values[~batch.shown] = torch.nan
    target[~(batch.hidden | batch.visible)] = torch.nan
    dirty = objective.losses(dataclasses.replace(batch, values=values, target=target))
    assert dirty.keys() == clean.keys()
    for name, loss in dirty.items():
        torch.testing.assert_close(loss, clean[name])
    dirty["loss"].backward()
    assert all(
        torch.isfinite(p.grad).all() for p in stage.model.module.parameters() if p.grad is not None
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_losses_are_plain_means(opened: Any, loud: Any, scheme: str) -> None:
    weights = {"hidden_weight": 2.0, "visible_weight": 0.5}
    stage, batches = opened(scheme, objective=weights)
    loud(stage.model.module)
    objective = stage.objective().eval()
    batch = batches[0]
    with torch.no_grad():
        parts = objective.losses(batch)
    part = "masked_sites" if scheme == "patch" else "masked_entries"
    torch.testing.assert_close(parts["loss"], 2 * parts[part] + 0.5 * parts["visible"])
    errors: dict[str, list[float]] = {"mean": [], "neighbors": []}
    for b, s, m in batch.hidden.nonzero().tolist():
        target = float(batch.target[b, s, m])
        errors["mean"].append((target - float(batch.mean[b, m])) ** 2)
        distance = (
            (batch.places[b] - batch.places[b, s])
            .norm(dim=-1)
            .masked_fill(~batch.shown[b], torch.inf)
        )
        distance[s] = torch.inf
        near = [int(o) for o in distance.argsort(stable=True)[:6] if distance[o] < torch.inf]
        shown = [float(batch.values[b, o, m]) for o in near if not batch.hidden[b, o, m]]
        errors["neighbors"].append((target - (float(np.mean(shown)) if shown else 0.0)) ** 2)
    for name, squares in errors.items():
        # which of several sites at the same distance is taken is chance
        assert float(parts[f"{part}_{name}"]) == pytest.approx(
            np.mean(squares), rel=1e-4 if name == "mean" else 0.08
        )


def test_squared_error_of_nothing_is_zero() -> None:
    predicted = torch.ones(2, 3, requires_grad=True)
    loss = squared_error(
        predicted, torch.full((2, 3), torch.nan), torch.zeros(2, 3, dtype=torch.bool)
    )
    loss.backward()
    assert loss == 0
    assert predicted.grad is not None
    assert (predicted.grad == 0).all()


def test_cosine_decay() -> None:
    optim = OptimConfig(warmup_steps=10, schedule="cosine")
    shares = [rate(step, optim, 110) for step in range(111)]
    assert shares[4] == pytest.approx(0.5)
    assert shares[10] == pytest.approx(1)
    assert shares[60] == pytest.approx(0.5)
    assert shares[110] == pytest.approx(0)
    np.testing.assert_allclose(
        shares[10:], (1 + np.cos(np.pi * np.arange(101) / 100)) / 2, atol=1e-12
    )


# ---- informed start


@torch.no_grad()
def test_informed_start_is_components_and_what_is_near(opened: Any) -> None:
    stage, batches = opened(model=INFORMED, objective={"target": "values"})
    vit, objective = stage.model.module, stage.objective().eval()
    width, size = vit.config.width, vit.config.width // vit.config.num_heads
    used = (vit.genes.weight != 0).any(dim=1)
    assert used.sum() == GENES  # those that are no channels, too
    k = int((vit.genes.weight != 0).any(dim=0).sum())
    assert k == width // 2
    costs: dict[str, list[float]] = {"start": [], "zero": [], "near": []}
    squares = []
    for batch in batches:
        tokens = vit.tokens(batch.values, batch.genes, batch.shown)
        squares.append(tokens[batch.shown][:, :k].square().mean())
        assert (tokens[..., k:] == 0).all()
        parts = objective.losses(batch)
        near = nearest(batch.places, batch.shown, 6)
        around = near @ tokens / near.sum(dim=-1, keepdim=True).clamp_min(1)
        around[..., min(size, k) :] = 0
        answer = torch.einsum("bsw,bmw->bsm", around, vit.gene_table(batch.genes)) * k / width
        costs["start"].append(float(parts[HIDDEN]))
        costs["zero"].append(float(parts[f"{HIDDEN}_mean"]))
        costs["near"].append(float(squared_error(answer, batch.target, batch.hidden)))
    assert float(np.mean(squares)) == pytest.approx(1, abs=0.3)
    start, zero, near = (np.mean(costs[name]) for name in ("start", "zero", "near"))
    assert start < 0.97 * zero
    assert start < 1.1 * near  # the neighbor mean of as many components as a head hands on


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["spot", "multi-spot", "slice"])
def test_informed_start_of_the_other_schemes(opened: Any, scheme: str) -> None:
    stage, batches = opened(scheme, model=INFORMED)
    objective = stage.objective().eval()
    parts = [objective.losses(batch) for batch in batches]
    for name in ("masked_entries", "visible"):
        assert np.mean([float(p[name]) for p in parts]) < np.mean(
            [float(p[f"{name}_mean"]) for p in parts]
        )


def test_every_measured_gene_starts_with_the_components_it_follows(stage_of: Any) -> None:
    from terrazzo.systems.stimage.sites import iterate_values

    windows = {"window": 6, "channels": 40, "choose": "weighted"}  # the rule may draw any of 120
    stage = stage_of(model={"init": "informed", "windows": windows})
    model, ids = stage.model, stage.members("train")
    store = site_store(stage.corpus, model)
    known = np.unique(np.concatenate([store.measured(i) for i in ids]))
    held = model.module.genes.weight.detach().double().numpy()
    assert (np.abs(held[known]).sum(axis=1) > 0).sum() > 0.9 * len(
        known
    )  # but genes that never vary
    order = np.argsort(-model.autocorrelation[known], kind="stable")
    panel, others = known[order[:40]], known[order[40:]]
    blocks = [
        store.scale(i).standardize(v.toarray(), np.arange(v.shape[1]))
        for i, v in iterate_values(store, ids, 10**6)
    ]
    values = np.concatenate(blocks).astype(np.float64)
    used = np.abs(held).sum(axis=0) > 0
    scores = values[:, panel] @ held[np.ix_(panel, used)]
    fitted = np.linalg.lstsq(scores, values[:, others], rcond=None)[0].T
    scale = (
        np.linalg.norm(held[panel]) ** 2 / used.sum()
    )  # of the embeddings against loadings of unit length
    np.testing.assert_allclose(
        held[np.ix_(others, used)], fitted * scale, atol=1e-3 * np.abs(fitted * scale).max()
    )


def test_informed_start_is_the_same_in_every_process(stage_of: Any) -> None:
    informed = [stage_of(model={"init": "informed"}).initial_model() for _ in range(3)]
    assert len({model.fingerprint() for model in informed}) == 1
    random = stage_of().initial_model()
    torch.testing.assert_close(random.module.autocorrelation, informed[0].module.autocorrelation)
    assert random.fingerprint() != informed[0].fingerprint()


def test_informed_start_needs_distances(stage_of: Any) -> None:
    stage = stage_of(model={"init": "informed"}, objective={"flavor": "paper"})
    with pytest.raises(ConfigError, match="take init: random"):
        stage.initial_model()
