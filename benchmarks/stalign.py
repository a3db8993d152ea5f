"""ST-Align: steps a second with the frozen encoders' features stored, and with these encoders run at every step.

``python benchmarks/stalign.py [--quick] [--steps 5] [--out FILE]``

Simulated Visium slices with histology in a corpus. Both ways train on the same spots and end with the same losses. The
baseline cuts the crops of a batch out of the stored picture at every step, sends those of the niches through the frozen
image encoder, the counts through the frozen gene encoder, and averages the niches' values. Published encoders are
represented by their shape, with random weights, which take as long.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common

VITS = {  # of transformers; UNI is a ViT-L/16
    "ViT-S/16": {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
    },
    "ViT-L/16": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}


def corpus_of(folder: Path, spots: int):
    """Simulate two Visium slices with histology and build their corpus."""
    import pandas as pd

    import terrazzo as tz

    made = tz.simulate.corpus(
        2, spots, layout="visium", n_genes=1000, seed=0, image=True, image_px=1500
    )
    for i, adata in enumerate(made):
        adata.write_h5ad(folder / f"{i}.h5ad")
    pd.DataFrame([{"path": f"{i}.h5ad", "split": "train"} for i in range(2)]).to_csv(
        folder / "s.csv", index=False
    )
    corpus = tz.build_corpus(
        folder / "s.csv", folder / "corpus", min_genes=1, scheduler="synchronous", progress=False
    )
    return corpus, made


def vit_folder(folder: Path, name: str) -> str:
    """Write a vision transformer of a published shape with random weights; "" for the library's own small one."""
    if name not in VITS:
        return ""
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**VITS[name]), add_pooling_layer=False).save_pretrained(folder / "vit")
    return str(folder / "vit")


class Encoded:
    """Niche crops that are cut and encoded whenever they are read."""

    def __init__(self, crops, encoder) -> None:
        self.crops, self.encoder = crops, encoder

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, rows):
        return self.encoder.features([self.crops[rows]])


class Counted:
    """Spots whose counts are encoded whenever they are read (the stored rows are returned: the cost is the same)."""

    def __init__(self, cut, encoder, stored) -> None:
        self.cut, self.encoder, self.stored = cut, encoder, stored

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows):
        self.encoder.encode(self.cut.tissue.counts[rows], self.cut.matched)
        return self.stored[rows]


def fresh(store, name, model):
    """Return features of a slice of which nothing is stored but means and deviations."""
    from terrazzo.systems.stalign.features import NicheValues

    cut, held = store._cut(name), store.of(name)
    module = model.module
    return replace(
        held,
        spot_image=cut.spots,
        niche_image=Encoded(cut.surroundings, module.image_encoder),
        spot_genes=Counted(cut, module.gene_encoder, held.spot_genes),
        niche_genes=NicheValues(cut),
    )


def compare(corpus, folder: Path, preset: str, encoder: str, batch: int, steps: int) -> dict:
    """Time steps both ways; returns a row of the table."""
    import torch

    from terrazzo.systems.stalign.features import AlignBatch
    from terrazzo.systems.stalign.loader import FeatureStore
    from terrazzo.systems.stalign.objective import AlignPack
    from terrazzo.training.recipe import recipe_from_dict
    from terrazzo.training.resuming import seed_everything
    from terrazzo.training.run import make_stage

    recipe = recipe_from_dict(
        {
            "stage": "stalign-pretrain",
            "corpus": str(corpus.folder),
            "out": str(folder / "run"),
            "model": {"preset": preset, "image_encoder": vit_folder(folder, encoder)},
            "data": {"batch_spots": batch},
        }
    )
    stage = make_stage(recipe, progress=False)
    model = stage.model
    start = time.perf_counter()
    stage.prepare()
    prepared = time.perf_counter() - start
    ids = corpus.ids("train")
    store = FeatureStore(corpus, model)
    ways = {
        "stored": [store.of(name) for name in ids],
        "at every step": [fresh(store, name, model) for name in ids],
    }
    rng, sizes = np.random.default_rng(0), [len(held) for held in ways["stored"]]
    drawn = [
        [np.sort(rng.choice(n, batch // 2, replace=False)) for n in sizes] for _ in range(steps + 1)
    ]
    seconds, losses = {}, {}
    for way, features in ways.items():
        seed_everything(0)
        objective = make_stage(recipe, progress=False).objective()
        optimizer = torch.optim.AdamW(
            [p for p in objective.parameters() if p.requires_grad], lr=1e-4
        )
        losses[way], each = [], []
        for rows in drawn:
            start = time.perf_counter()
            spots = AlignBatch.join(
                [f.take(r, i * 10**6) for i, (f, r) in enumerate(zip(features, rows, strict=True))]
            )
            optimizer.zero_grad()
            loss = objective.losses(AlignPack(spots, [""] * batch))["loss"]
            loss.backward()
            optimizer.step()
            losses[way].append(float(loss))
            each.append(time.perf_counter() - start)
        seconds[way] = float(np.median(each[1:]))  # the first warms up
    if not np.allclose(losses["stored"], losses["at every step"], rtol=1e-2):
        raise SystemExit(f"both ways must have the same losses, not {losses}")
    return {
        "preset": preset,
        "frozen image encoder": encoder,
        "spots a step": batch,
        "stored, steps/s": 1 / seconds["stored"],
        "at every step, steps/s": 1 / seconds["at every step"],
        "times": seconds["at every step"] / seconds["stored"],
        "features of all spots, s": prepared,
    }


def embedding(adata, corpus, preset: str) -> dict[str, float]:
    """Return the seconds to embed a slice, at first and with its features stored."""
    import terrazzo as tz
    from terrazzo.systems.stalign.config import SIZES
    from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder

    eye = FrozenImageEncoder.small(**SIZES[preset]["vit"])  # as the times in the results
    model = tz.STAlign(preset, corpus.vocabulary(), image_encoder=eye)
    model.provenance = {"weights": "trained"}
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first", "again"):
            start = time.perf_counter()
            model.embed(adata, cache=cache, progress=False)
            found[name] = time.perf_counter() - start
    return found


def main() -> None:
    """Print the table."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--spots", type=int, default=600, help="of the slice that is embedded")
    options = parser.parse_args()
    plan = [("tiny", "small, random", 64, 100), ("tiny", "ViT-S/16", 16, 20)]
    plan += (
        []
        if options.quick
        else [
            ("small", "small, random", 64, 100),
            ("tiny", "ViT-L/16", 8, 10),
            ("paper", "ViT-L/16", 8, 10),
        ]
    )
    rows, result = [], {}
    for preset, encoder, batch, spots in plan:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            corpus, _ = corpus_of(folder, spots)
            row = compare(
                corpus, folder, preset, encoder, batch, 2 if options.quick else options.steps
            )
            rows.append(row)
            result[f"{preset}_{encoder.split(',')[0].replace('/', '')}_times"] = row["times"]
    with tempfile.TemporaryDirectory() as temporary:
        spots = 150 if options.quick else options.spots
        corpus, made = corpus_of(Path(temporary), spots)
        found = embedding(made[0], corpus, "tiny")
    result |= {"embed_s": found["first"], "embed_stored_s": found["again"]}
    notes = [
        f"embedding a slice of {spots} spots, preset tiny, its own small encoder: {found['first']:.2g} s, "
        f"{found['again']:.2g} s with its features stored",
        "target: 10 times; what is gained is what the frozen encoders cost beside what is trained",
        "ViT-L/16 is the shape of UNI; the gene encoder is the components, which cost nothing, unlike scGPT",
    ]
    common.finish("ST-Align: training with stored features", rows, notes, result, options.out)


if __name__ == "__main__":
    main()
