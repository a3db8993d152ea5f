"""The clockwork of the loaders: which slices, in which order, shared by which rank, and where to resume."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from terrazzo.errors import ConfigError, CorpusError

if TYPE_CHECKING:
    from terrazzo.corpus.store import Corpus


T = TypeVar("T")


K = TypeVar("K")


class Members:
    """The slices of one split, or a fixed share of them; of these those that are kept (None: all)."""

    def __init__(
        self, corpus: Corpus, split: str, share: float, keep: Callable[[str], bool] | None = None
    ) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"share is {share}; it must be above 0 and at most 1.")
        table = corpus.manifest.set_index("id")
        ids = corpus.ids(split)
        if not ids:
            there = ", ".join(sorted({str(s) for s in table["split"]})) or "none"
            raise CorpusError(
                f"the corpus has no slice in the split {split!r}; its splits: {there}."
            )
        wrong = [i for i in ids if table.at[i, "split"] != split]
        if wrong:
            raise CorpusError(
                f"slice {wrong[0]!r} is not of the split {split!r}: it must never be loaded with it."
            )
        # by a hash of the name: a larger share holds all slices of a smaller one, whatever the seed or the order
        ranked = sorted(ids, key=lambda i: hashlib.sha256(i.encode()).digest())
        chosen = set(ranked[: max(1, round(share * len(ids)))])
        self.ids = [i for i in ids if i in chosen and (keep is None or keep(i))]
        if not self.ids:
            raise CorpusError(
                f"of the {len(chosen)} slices of the split {split!r} none can be used; see the log."
            )
        self.rows = table.loc[self.ids]
        self.n_cells = self.rows["n_cells"].to_numpy(dtype=np.int64)
        content = [corpus.content_hash(), *self.ids]
        mark = hashlib.sha256("\n".join(content).encode()).hexdigest()
        self.settings = {"split": split, "share": share, "corpus": mark}


@dataclass(frozen=True)
class Shares:
    """How ``n`` samples become batches on ``world`` ranks.

    Every rank has ``steps`` batches of ``batch`` samples. Unless ``drop_last``, all samples are used: ranks differ by
    at most one sample, and the last batch (or the last two, so that none is empty) may be smaller.
    """

    n: int
    batch: int
    world: int
    drop_last: bool

    def __post_init__(self) -> None:
        least = self.batch * self.world if self.drop_last else self.world
        if self.batch < 1 or self.n < least:
            raise ConfigError(
                f"{self.n} samples cannot fill a batch of {self.batch} on each of {self.world} processes: take a "
                "smaller batch, fewer processes"
                + (", or drop_last=False." if self.drop_last else ".")
            )
        if not self.drop_last and self.batch == 1 and self.n % self.world:
            raise ConfigError(
                f"{self.n} samples cannot be shared by {self.world} processes one at a time: pass drop_last=True, or a "
                "batch of at least 2."
            )

    @property
    def steps(self) -> int:
        """Batches of each rank."""
        size = self.batch * self.world
        return self.n // size if self.drop_last else -(-self.n // size)

    def segment(self, rank: int) -> tuple[int, int]:
        """Return the samples of a rank where each takes one stretch of the order."""
        if self.drop_last:
            return rank * self.steps * self.batch, (rank + 1) * self.steps * self.batch
        return self.n * rank // self.world, self.n * (rank + 1) // self.world

    def bound(self, rank: int, step: int) -> int:
        """Return how many samples a rank has seen after ``step`` batches."""
        start, stop = self.segment(rank)
        total = stop - start
        if step == self.steps - 1 and total == step * self.batch:
            return total - 1  # one sample is left for the last batch
        return min(step * self.batch, total)

    def span(self, rank: int, step: int) -> tuple[int, int]:
        """Return the samples of a rank's batch where all ranks together take one stretch of the order a step."""
        done = [(self.bound(r, step), self.bound(r, step + 1)) for r in range(self.world)]
        start = sum(low for low, _ in done) + sum(high - low for low, high in done[:rank])
        return start, start + done[rank][1] - done[rank][0]


class Loader(Generic[T]):
    """Order, state and reading ahead, the same for all loaders; iterating goes from the state to the epoch's end."""

    def __init__(
        self,
        shares: Shares,
        members: Members,
        rank: int,
        seed: int,
        ahead: bool,
        settings: dict[str, Any],
    ) -> None:
        if not 0 <= rank < shares.world:
            raise ConfigError(
                f"rank is {rank}; it must be at least 0 and below world ({shares.world})."
            )
        self.ids = members.ids
        self._shares, self._members, self._rank, self._seed, self._ahead = (
            shares,
            members,
            rank,
            seed,
            ahead,
        )
        own = {
            "seed": seed,
            "world": shares.world,
            "batch": shares.batch,
            "drop_last": shares.drop_last,
        }
        self._settings = {"kind": type(self).__name__, **members.settings, **own, **settings}
        self._epoch = self._step = 0
        self._reading = threading.Lock()

    @property
    def epoch(self) -> int:
        """Epoch of the next batch."""
        return self._epoch

    def __len__(self) -> int:
        """Batches of an epoch, on every rank."""
        return self._shares.steps

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; within the epoch that is under way nothing changes."""
        if epoch != self._epoch:
            self._epoch, self._step = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Return epoch, number of batches handed out of it, and the settings that decide the order."""
        return {"epoch": self._epoch, "step": self._step, "settings": dict(self._settings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another loader was; any rank's state serves all ranks.

        Raises
        ------
        ConfigError
            The other loader had other settings or another corpus; the differences are shown.
        """
        theirs = state["settings"]
        names = [n for n in {**self._settings, **theirs} if self._settings.get(n) != theirs.get(n)]
        if names:
            shown = "; ".join(
                f"{n}: {theirs.get(n)!r} then, {self._settings.get(n)!r} now" for n in names
            )
            raise ConfigError(f"the data loader cannot resume, its settings differ: {shown}.")
        self._epoch, self._step = int(state["epoch"]), int(state["step"])

    def __iter__(self) -> Iterator[T]:
        epoch = self._epoch
        for step, batch in enumerate(self._stream(epoch, self._step), start=self._step + 1):
            self._epoch, self._step = (epoch, step) if step < len(self) else (epoch + 1, 0)
            yield batch

    def _stream(self, epoch: int, first: int) -> Iterator[T]:
        raise NotImplementedError

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *purpose])

    def _each(self, make: Callable[[K], Any], keys: Iterable[K]) -> Iterator[Any]:
        """Make one thing after the other, the next one in a thread while the last is used."""

        def alone(key: K) -> Any:
            with self._reading:  # an iterator that was left may still be reading
                return make(key)

        if not self._ahead:
            yield from map(alone, keys)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="terrazzo-loader") as pool:
            waiting = None
            for key in keys:
                coming = pool.submit(alone, key)
                if waiting is not None:
                    yield waiting.result()
                waiting = coming
            if waiting is not None:
                yield waiting.result()


SPREAD = 64  # that are looked at, spread over the corpus


def spread(ids: list[str]) -> list[str]:
    """Return at most so many slices as are looked at, from all over the list."""
    return [
        ids[i] for i in np.unique(np.linspace(0, len(ids) - 1, min(SPREAD, len(ids))).astype(int))
    ]
