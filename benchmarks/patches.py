"""Pretrain ST as images on real slices without labels, by every scheme and flavor, and score the held-out slice.

``python benchmarks/patches.py DATA --task dlpfc|merfish|starmap|simulated [--schemes patch spot ...] [--out FILE]``

What is trained, the heads and the baselines are those of ``pretrain.py``. All schemes have one backbone, one budget
of steps and one number of sites a step, the same slices, genes and heads. The test slice is the corpus's
validation slice: its losses are logged beside what trivial answers cost; nothing is chosen by them. ``--keep FOLDER``
keeps corpus and runs, and takes over those that are finished.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common
import pretrain

VARIANTS = {  # name: (scheme, flavor, init)
    "patch": ("patch", "terrazzo", "informed"),
    "patch, random start": ("patch", "terrazzo", "random"),
    "patch, paper": ("patch", "paper", "random"),
    "spot": ("spot", "terrazzo", "informed"),
    "multi-spot": ("multi-spot", "terrazzo", "informed"),
    "slice": ("slice", "terrazzo", "informed"),
    "spot, paper": ("spot", "paper", "random"),
    "multi-spot, paper": ("multi-spot", "paper", "random"),
    "slice, paper": ("slice", "paper", "random"),
}
ABLATIONS = {  # of "patch": tables 4 to 6
    "windows of 8": {"window": 8},
    "windows of 24": {"window": 24},
    "256 channels": {"channels": 256},
    "512 channels": {"channels": 512},
    "weighted, 512 channels": {"channels": 512, "choose": "weighted"},
    "hvg, 512 channels": {"channels": 512, "choose": "hvg"},
    "random, 512 channels": {"channels": 512, "choose": "random"},
}
STEPS = {"dlpfc": 600, "merfish": 600, "starmap": 200, "simulated": 200}
BINS = {
    "merfish": 13.0,
    "starmap": 153.0,
}  # about the distance between neighbors, in the slices' own unit


def recipe(name: str, root: Path, out: Path, options, seed: int):
    """Return the recipe of one variant."""
    from terrazzo.training.recipe import recipe_from_dict

    scheme, flavor, init = VARIANTS.get(name, VARIANTS["patch"])
    paper = flavor == "paper"
    windows = {"bin_um": options.bin, "window": options.window, "channels": 1000}
    windows["choose"] = "spatial"
    if paper:
        windows |= {"channels": 512, "choose": "weighted"}
    windows |= ABLATIONS.get(name, {})
    # as many sites a step
    batch = max(1, options.batch * options.window**2 // windows["window"] ** 2)
    alone = scheme != "patch"
    return recipe_from_dict(
        {
            "stage": "stimage-pretrain",
            "corpus": str(root / "corpus"),
            "out": str(out),
            "model": {"preset": options.preset, "init": init, "windows": windows},
            "data": {"batch_windows": batch, "windows_per_slice": 4 * batch},
            "optim": {
                "lr": options.lr,
                "warmup_steps": 20,
                "epochs": 100_000,
                "max_steps": options.steps,
                "schedule": "cosine",
            },
            "objective": {
                "scheme": scheme,
                "flavor": flavor,
                "mask": "entry" if alone or paper else "site",
                "target": "values" if paper else "thinned",
            },
            # validated at the end
            "run": {"log_every": 10, "validate_every": 100_000, "checkpoint_every": 100_000},
            "seed": seed,
        }
    )


def train(name: str, root: Path, options, seed: int):
    """Train one variant; returns the model, its seconds, and the losses on the held-out slice."""
    import terrazzo as tz

    out = root / f"{name}-{seed}".replace(", ", "-").replace(" ", "-")
    start = time.perf_counter()
    if not (out / "model" / "config.json").is_file():
        tz.pretrain(recipe(name, root, out, options, seed))
        return tz.load(out / "model"), time.perf_counter() - start, pretrain.held_out_losses(out)
    return tz.load(out / "model"), float("nan"), pretrain.held_out_losses(out)


def blocks_of(name: str, model, slices: list) -> dict[str, list[np.ndarray]]:
    """Return every vector of a trained model that is scored, by name."""
    whole = pretrain.vectors_of(model, slices)
    if model.config.output != "own+niche":
        return {f"{name}": whole}
    half = whole[0].shape[1] // 2
    return {
        f"{name} [own ; niche]": whole,
        f"{name}, own block": [v[:, :half] for v in whole],
        f"{name}, niche block": [v[:, half:] for v in whole],
    }


def run(slices: list, labels: list[str], options) -> tuple[list, list, dict]:
    """Train, embed and score; returns rows, notes and held-out losses."""
    import terrazzo as tz

    tissues = [tz.Slice.from_anndata(a) for a in slices]
    given = {x: [np.asarray(a.obs[x].astype(str)) for a in slices] for x in labels}
    scores: dict[tuple[str, str], list[dict]] = {}

    def note(found: dict[str, list[np.ndarray]]) -> None:
        for label in labels:
            known = given[label]
            for name, v in found.items():
                row = pretrain.score(v[:-1], known[:-1], v[-1], known[-1], tissues[-1].coords)
                scores.setdefault((label, name), []).append(row)
                print(label, name, row, file=sys.stderr, flush=True)

    if not options.no_baselines:
        note(pretrain.baselines(tissues[:-1], tissues[-1]))
    notes, losses = [], {}
    with contextlib.ExitStack() as stack:
        root = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "corpus" / "manifest.parquet").is_file():
            pretrain.make_corpus(root, slices)
        for name in options.schemes:
            for seed in range(options.seeds if name == "patch" else options.other_seeds):
                model, seconds, found = train(name, root, options, seed)
                losses.setdefault(name, []).append(found)
                start = time.perf_counter()
                vectors = blocks_of(f"ST as images: {name}", model, slices)
                embedding = (time.perf_counter() - start) / len(slices)
                notes.append(
                    f"{name}, seed {seed}: trained in {seconds:.0f} s, a slice embedded in {embedding:.0f} s"
                )
                note(vectors)
    rows = [
        {"label": label, "embedding": name, "seeds": len(r), **pretrain.summary(r)}
        for (label, name), r in scores.items()
    ]
    rows.sort(key=lambda r: labels.index(r["label"]))
    return rows, notes, losses


def main() -> None:
    """Run one task and print its table."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--task", choices=STEPS, default="dlpfc")
    parser.add_argument(
        "--schemes", nargs="+", choices=[*VARIANTS, *ABLATIONS], default=list(VARIANTS)
    )
    parser.add_argument(
        "--no-baselines", action="store_true", help="they stand in another result of the task"
    )
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seeds", type=int, default=2, help="of the patch scheme")
    parser.add_argument("--other-seeds", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=4, help="windows a step")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--bin", type=float)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--keep", type=Path, help="folder for corpus and runs; finished ones there are used"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import anndata

    import terrazzo as tz

    task = "simulated" if options.quick or options.data is None else options.task
    options.steps = options.steps or STEPS[task]
    options.bin = BINS.get(task, 0.0) if options.bin is None else options.bin
    if task == "simulated":
        slices = tz.simulate.corpus(4, 400, layout="visium", seed=0)
        labels = ["region"]
        if options.quick:
            options.steps, options.seeds, options.schemes = 5, 1, ["patch", "spot"]
    else:
        folder, names, held_out, labels = pretrain.TASKS[task]
        slices = [
            anndata.read_h5ad(options.data / folder / f"{n}.h5ad") for n in [*names, held_out]
        ]
    rows, notes, losses = run(slices, labels, options)
    notes += pretrain.loss_notes(losses)
    trivial = [r for r in rows if not r["embedding"].startswith("ST as images")]
    result = {}
    for label in labels:
        for kind in ("blocked acc", "cross acc"):
            short = f"{label}_{kind.split()[0]}"
            ours = [r for r in rows if r["label"] == label]
            if trivial:
                result[f"{short}_best_trivial"] = max(
                    pretrain.number(r[kind]) for r in trivial if r["label"] == label
                )
            for name in options.schemes:
                of = [
                    r
                    for r in ours
                    if r["embedding"].removeprefix("ST as images: ")
                    in (name, f"{name} [own ; niche]")
                ]
                result[f"{short}_{name.replace(', ', '_').replace(' ', '_')}"] = pretrain.number(
                    of[0][kind]
                )
    notes.append(
        f"{ {k: getattr(options, k) for k in ('preset', 'steps', 'batch', 'window', 'bin', 'lr')} }"
    )
    notes.append(f"losses, all seeds: {json.dumps(losses)}")
    common.finish(
        f"ST as images on {task}, preset {options.preset}: held-out slice",
        rows,
        notes,
        result,
        options.out,
    )


if __name__ == "__main__":
    main()
