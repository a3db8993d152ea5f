"""Deconvolution: proportions of cell types, learned from the spots of a slice for others of it or of another slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anndata import AnnData

from terrazzo.arrays import AnyFloats
from terrazzo.models.shift import AUTO, CommonGenes
from terrazzo.slices.parts import takes_all
from terrazzo.tasks import targets
from terrazzo.tasks.by_section import check_keys, check_slices, scored_by_section
from terrazzo.tasks.experiments import Plan, across, within
from terrazzo.tasks.heads import HeadConfig
from terrazzo.tasks.results import TaskResult
from terrazzo.tasks.targets import Data
from terrazzo.tasks.transfer import check_source, embedded_alone, moved_to

__all__ = ["deconvolve"]


def deconvolve(
    data: Data,
    *,
    use_rep: str | AnyFloats | None = None,
    proportions: Any = "proportions",
    head: str | HeadConfig = "mlp3",
    splits: Sequence[str] = ("random", "blocked"),
    runs: int = 3,
    test: AnnData | None = None,
    seed: int = 0,
    progress: bool | None = None,
    slice_key: str | None = None,
    model: Any = None,
    common_genes: CommonGenes = AUTO,
    copies: bool | None = None,
) -> TaskResult:
    """Score how well an embedding predicts the proportions of cell types (SToFM, section 4.5 and table 3).

    To carry proportions over to a slice without any, ``fit_probe(..., proportions=...)`` and ``Probe.annotate``.

    Parameters
    ----------
    data
        One slice; with ``test``, one or several that are learned from.
    use_rep, head, splits, runs, seed, progress
        As in :func:`terrazzo.tasks.probe`. The MLPs end in a softmax, learned with the Kullback-Leibler
        divergence; ``"linear"`` takes the proportions nearest to a ridge regression.
    proportions
        Key of ``obsm``, DataFrame or array ``(n, types)``: non-negative rows that sum to one. Types are named by the
        DataFrame or by ``uns["<key>_names"]``. A type that a training slice does not list counts as absent from it.
    test
        Another slice that is scored, over the types that both sides list, as they are, not divided by their sum; the
        others are named in ``notes``.
    slice_key
        Column of ``obs`` that tells the sections of an AnnData apart, each of which is a slice; "none": all its cells
        are one, whatever tells them apart. Without ``test`` each is scored by itself; scores and predictions have
        a column ``slice``.
    model, common_genes, copies
        As in :func:`terrazzo.tasks.probe`.

    Returns
    -------
    Metrics of :func:`terrazzo.tasks.metrics.regression`, over all types and for each (``part``), and ``rmse_mean`` and
    ``mae_mean`` of the trivial answer, which is the mean of the training spots. The paper does not define its Pearson;
    ``pearson`` is the mean over types, ``pearson_overall`` that of all values together. Predictions: a row for each
    cell of the scored slice, columns ``"true:TYPE"`` and ``"random:TYPE"``, ...

    Raises
    ------
    InputError
        Rows that are negative or do not sum to one within 0.001, slices without a type in common, or an embedding
        that cannot be used; the message says where and why.
    ConfigError
        No such head or split; several slices without ``test``.
    """
    plan = Plan("deconvolution", head, tuple(splits), runs, seed, progress)
    check_source(use_rep, model, common_genes, copies)
    if not takes_all(slice_key):
        check_keys(str(slice_key), use_rep=use_rep, proportions=proportions)
        options: dict[str, Any] = {
            "use_rep": use_rep,
            "proportions": proportions,
            "head": head,
            "splits": splits,
            "runs": runs,
            "seed": seed,
            "progress": progress,
            "model": model,
            "common_genes": common_genes,
            "copies": copies,
        }
        return scored_by_section(
            lambda some, other: deconvolve(some, test=other, **options), data, test, str(slice_key)
        )
    check_slices(data, test, slice_key)
    target = targets.read_proportions(data, proportions)
    settings = {"use_rep": use_rep, "proportions": proportions}
    if test is None:
        vectors = embedded_alone(model, data) if use_rep is None else use_rep
        return within(plan, data, vectors, target, settings)
    truth = targets.read_proportions(test, proportions)
    moved = moved_to(
        test,
        use_rep,
        model,
        data,
        target,
        common_genes=common_genes,
        copies=copies,
        seed=seed,
    )
    return across(plan, data, test, use_rep, target, truth, settings, moved=moved)
