"""A masked autoencoder over the sites of a window: gene embeddings in and out, attention by distance or position.

ST as images, sections 3.2 and 4.2. A site's token is its channels times the gene embeddings, so any set of genes works;
the prediction for a gene is the product of its embedding and the site's state (eq 8). Hidden sites never enter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FAR = -1e4  # added to the logit of a site that must not be looked at


LONGEST = 10_000.0  # wavelength of the slowest sine


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of the autoencoder; the defaults are the paper's (section 4.2).

    Attributes
    ----------
    n_genes
        Rows of the gene embedding: tokens of the vocabulary.
    width, num_layers, num_heads, ffn_size
        Of the encoder.
    decoder_layers, decoder_ffn_size
        Of the decoder, of the same width.
    positions
        ``"sincos"``: fixed 2-D sines of the place in the window, added to the token (as in MAE). ``"distance"``: every
        head but the last lets its weights fall with distance, by a range that is learned; then nothing depends on where
        a window begins, and windows of any size can be taken.
    context
        Sites look at each other; False: every site stands alone (spot-based schemes, eq 2).
    fuse
        With a layer that joins a site's state with its domain's (slice-based scheme, eq 4).
    """

    n_genes: int
    width: int = 256
    num_layers: int = 6
    num_heads: int = 8
    ffn_size: int = 1024
    decoder_layers: int = 2
    decoder_ffn_size: int = 512
    positions: Literal["sincos", "distance"] = "sincos"
    context: bool = True
    fuse: bool = False

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(
                f"width ({self.width}) must be a multiple of num_heads ({self.num_heads}) and of 4."
            )


class Block(nn.Module):
    """Attention and feed-forward, normalized before (pre-LN); what is handed on keeps its length."""

    def __init__(self, width: int, heads: int, ffn: int, by_distance: bool) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        radii = torch.logspace(math.log10(0.7), math.log10(6.0), max(heads - 1, 1))
        self.log_radius = nn.Parameter(radii[: heads - 1].log()) if by_distance else None

    def bias(self, distance: Tensor | None, seen: Tensor) -> Tensor:
        """Return what is added to the logits, ``(B, heads or 1, queries, sites)``.

        Parameters
        ----------
        distance
            ``(B, queries, sites)`` in pitches; None without distances.
        seen
            bool, ``(B, queries or 1, sites)``: what may be looked at.
        """
        hidden = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, FAR)[:, None]
        if self.log_radius is None or distance is None:
            return hidden
        near = -distance[:, None] * (-self.log_radius).exp()[None, :, None, None]
        return torch.cat([near, torch.zeros_like(distance)[:, None]], dim=1) + hidden

    def forward(self, x: Tensor, source: Tensor, distance: Tensor | None, seen: Tensor) -> Tensor:
        """Update ``x`` ``(B, queries, width)`` by looking at ``source`` ``(B, sites, width)``."""
        batch, n, width = x.shape
        q, s = self.attention_norm(x), self.attention_norm(source)

        def split(t: Tensor) -> Tensor:
            return t.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)

        attended = F.scaled_dot_product_attention(
            split(self.query(q)),
            split(self.key(s)),
            split(self.value(source)),
            attn_mask=self.bias(distance, seen),
        )
        x = x + self.out(attended.transpose(1, 2).reshape(batch, n, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class MaskedViT(nn.Module):
    """Encoder, decoder and gene embedding.

    Shapes: ``B`` windows of ``S`` sites with ``m`` channels. A site is *shown* (its values enter), hidden (predicted
    from the others) or empty (neither; it is never looked at).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        by_distance = config.positions == "distance"
        self.genes = nn.Embedding(config.n_genes, config.width)
        nn.init.normal_(self.genes.weight, std=config.width**-0.5)
        self.mask_token = nn.Parameter(torch.zeros(config.width))
        self.register_buffer(
            "autocorrelation", torch.zeros(config.n_genes)
        )  # of each gene in the training slices
        self.encoder = nn.ModuleList(
            Block(config.width, config.num_heads, config.ffn_size, by_distance)
            for _ in range(config.num_layers)
        )
        self.decoder = nn.ModuleList(
            Block(config.width, config.num_heads, config.decoder_ffn_size, by_distance)
            for _ in range(config.decoder_layers)
        )
        self.readout = nn.Linear(config.width, config.width)
        self.fusion = nn.Linear(2 * config.width, config.width) if config.fuse else None

    def tokens(self, values: Tensor, genes: Tensor, shown: Tensor | None = None) -> Tensor:
        """Return ``(B, S, width)`` from values ``(B, S, m)`` and their genes ``(B, m)``, -1 for no gene.

        The sum over channels is divided by the mean square of their embeddings, so that it is the same estimate of a
        site's state from few genes and from many. Values of sites that are not ``shown`` ``(B, S)``, and of no gene,
        are not read: whatever they are, NaN too, they reach neither outputs nor gradients.
        """
        used = (genes >= 0)[:, None] if shown is None else (genes >= 0)[:, None] & shown[..., None]
        values, table = torch.where(used, values, 0.0), self.gene_table(genes)
        return (
            torch.einsum("bsm,bmw->bsw", values, table)
            * self.share(table.square().sum(dim=(1, 2)))[:, None, None]
        )

    def gene_table(self, genes: Tensor) -> Tensor:
        """Return the embeddings of genes, zero for -1."""
        return self.genes(genes.clamp_min(0)) * (genes >= 0)[..., None]

    def share(self, square: Tensor) -> Tensor:
        """Return the factor that goes with a sum of squared embeddings."""
        return self.config.width / square.clamp_min(1e-6)

    def encode(self, tokens: Tensor, places: Tensor, shown: Tensor) -> Tensor:
        """Return the states of shown sites, ``(B, S, width)``; zero elsewhere. Others are left out of the work.

        Parameters
        ----------
        tokens
            ``(B, S, width)``.
        places
            ``(B, S, 2)``, x and y in pitches.
        shown
            bool ``(B, S)``.
        """
        most = max(int(shown.sum(dim=1).max()), 1)
        order = torch.argsort(~shown, dim=1, stable=True)[:, :most]
        kept, index = shown.gather(1, order), order[..., None]
        x = torch.where(
            kept[..., None], tokens.gather(1, index.expand(-1, -1, tokens.shape[2])), 0.0
        )
        there = places.gather(1, index.expand(-1, -1, 2))
        if self.config.positions == "sincos":
            x = x + self.positions(there, places)
        seen, distance = self._seen(kept), self._distance(there, there)
        for block in self.encoder:
            x = block(x, x, distance, seen)
        out = torch.zeros_like(tokens)
        return out.scatter(1, index.expand_as(x), x * kept[..., None])

    def decode(self, states: Tensor, places: Tensor, shown: Tensor) -> Tensor:
        """Return a state for every site, ``(B, S, width)``, from those of the shown ones."""
        x = torch.where(shown[..., None], states, self.mask_token)
        if self.config.positions == "sincos":
            x = x + self.positions(places, places)
        seen, distance = self._seen(shown), self._distance(places, places)
        for block in self.decoder:
            x = block(x, x, distance, seen)
        return x

    def predict(self, states: Tensor, genes: Tensor) -> Tensor:
        """Return the predicted values ``(B, S, m)`` of genes ``(B, m)``: embedding times state (eq 8)."""
        return torch.einsum("bsw,bmw->bsm", self.state(states), self.gene_table(genes))

    def state(self, states: Tensor) -> Tensor:
        """Return what gene embeddings are multiplied with, ``(..., width)``."""
        return self.readout(states)

    def positions(self, places: Tensor, window: Tensor) -> Tensor:
        """Return 2-D sines of the place in the window, ``(B, S, width)``."""
        start = window.amin(dim=1, keepdim=True)
        quarter = self.config.width // 4
        rate = LONGEST ** (-torch.arange(quarter, device=places.device) / quarter)
        angle = (places - start)[..., None] * rate
        return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(2)

    def flops(self, sites: int, channels: int) -> float:
        """Return the operations of one window of so many sites and channels, forward."""
        size = self.config
        rest = 2 * sites * channels * size.width

        def layer(ffn: int) -> float:
            return 2 * sites * size.width * (4 * size.width + 2 * ffn + 2 * sites)

        return (
            rest
            + size.num_layers * layer(size.ffn_size)
            + size.decoder_layers * layer(size.decoder_ffn_size)
        )

    def _seen(self, shown: Tensor) -> Tensor:
        if self.config.context:
            return shown[:, None, :]
        return torch.eye(shown.shape[1], dtype=torch.bool, device=shown.device).expand(
            len(shown), -1, -1
        )

    def _distance(self, there: Tensor, source: Tensor) -> Tensor | None:
        if self.config.positions != "distance" or not self.config.context:
            return None
        # by matrix products, as cdist likes it, a site far from the origin would lie 0.01 away from itself
        return torch.cdist(there, source, compute_mode="donot_use_mm_for_euclid_dist")


def scheme_states(
    vit: MaskedViT,
    values: Tensor,
    genes: Tensor,
    places: Tensor,
    shown: Tensor,
    *,
    neighbors: int = 0,
    domain: Tensor | None = None,
) -> Tensor:
    """Return the states ``(B, S, width)`` that :meth:`MaskedViT.predict` takes.

    Parameters
    ----------
    vit
        With ``context`` for the patch scheme, without for the others.
    values
        ``(B, S, m)``; those of sites that are not shown are not read.
    genes
        int64 ``(B, m)``, -1 for none.
    places
        ``(B, S, 2)`` in pitches.
    shown
        bool ``(B, S)``: sites that enter.
    neighbors
        Above 0: the mean over a site and so many of its nearest (multi-spot, eq 3).
    domain
        int64 ``(B, S)``, -1 for none: joined with the mean over the site's domain (slice, eq 4; needs ``fuse``).
    """
    states = vit.decode(vit.encode(vit.tokens(values, genes, shown), places, shown), places, shown)
    if neighbors:
        states = neighbor_average(states, places, shown, neighbors)
    if vit.fusion is not None and domain is not None:
        states = vit.fusion(
            torch.cat([states, domain_means(states, domain.masked_fill(~shown, -1))], dim=-1)
        )
    return states


def nearest(places: Tensor, present: Tensor, k: int) -> Tensor:
    """Return 1 for each site's ``k`` nearest present sites, itself not counted, else 0; ``(B, S, S)``."""
    distance = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
    itself = torch.eye(places.shape[1], dtype=torch.bool, device=places.device)
    distance = distance.masked_fill(~present[:, None] | itself, torch.inf)
    near = distance.topk(min(k, places.shape[1]), dim=-1, largest=False)
    return torch.zeros_like(distance).scatter(
        2, near.indices, near.values.isfinite().to(distance.dtype)
    )


def neighbor_average(states: Tensor, places: Tensor, present: Tensor, k: int) -> Tensor:
    """Return the mean state of each site and its ``k`` nearest present sites, with equal weights (eq 3).

    Parameters
    ----------
    states
        ``(B, S, width)``; those of sites that are not present are not read.
    places
        ``(B, S, 2)``.
    present
        bool ``(B, S)``.
    k
        Where fewer are there, the mean is over those.
    """
    weight = nearest(places, present, k) + torch.diag_embed(present.to(places.dtype))
    states = torch.where(present[..., None], states, 0.0)
    return weight @ states / weight.sum(dim=-1, keepdim=True).clamp_min(1)


def domain_means(states: Tensor, domain: Tensor) -> Tensor:
    """Return the mean state of each site's domain (eq 4), ``(B, S, width)``; zero for a site without one (-1)."""
    held = domain[..., None] == torch.arange(int(domain.max()) + 1, device=domain.device)
    member = held.to(states.dtype)
    states = torch.where(held.any(dim=-1, keepdim=True), states, 0.0)
    means = member.transpose(1, 2) @ states / member.sum(dim=1).clamp_min(1)[..., None]
    return member @ means
