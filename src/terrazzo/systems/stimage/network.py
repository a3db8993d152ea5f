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

from terrazzo.config import HEADS, LAYERS, SIZE, TOKENS, within

__all__ = [
    "Block",
    "MaskedViT",
    "ViTConfig",
    "domain_means",
    "nearest",
    "neighbor_average",
    "scheme_states",
]

HIDDEN_LOGIT = -1e4  # added to the logit of a site that must not be attended to

SHORTEST_RADIUS = 0.7  # pitches: ranges of a new layer's heads

LONGEST_RADIUS = 6.0

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
        Sites attend to each other; False: every site is encoded alone (spot-based schemes, eq 2).
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
        within(self, n_genes=TOKENS, width=SIZE, num_layers=LAYERS, num_heads=HEADS, ffn_size=SIZE)
        within(self, decoder_layers=(0, LAYERS[1]), decoder_ffn_size=SIZE)
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(
                f"width ({self.width}) must be a multiple of num_heads ({self.num_heads}) and of 4."
            )


class Block(nn.Module):
    """Transformer layer with LayerNorm before each branch (pre-LN); values are not normalized.

    Parameters
    ----------
    width, heads
        Width of the states, and attention heads.
    ffn
        Width of the hidden layer after attention.
    by_distance
        Every head but the last lets its weights fall with distance.
    """

    def __init__(self, width: int, heads: int, ffn: int, by_distance: bool) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)
        self.log_radius: nn.Parameter | None = None
        if by_distance:
            radii = _radii(heads - 1)
            self.log_radius = nn.Parameter(radii.log())

    def bias(self, distance: Tensor | None, seen: Tensor) -> Tensor:
        """Return what is added to the logits, ``(B, heads or 1, queries, sites)``.

        Parameters
        ----------
        distance
            ``(B, queries, sites)`` in pitches; None without distances.
        seen
            bool, ``(B, queries or 1, sites)``: what may be attended to.
        """
        open_logits = torch.zeros(seen.shape, device=seen.device)
        hidden = open_logits.masked_fill(~seen, HIDDEN_LOGIT)
        hidden = hidden.unsqueeze(1)
        if self.log_radius is None or distance is None:
            return hidden
        distance = distance.unsqueeze(1)
        per_pitch = (-self.log_radius).exp()
        per_pitch = per_pitch.view(1, -1, 1, 1)
        near = -distance * per_pitch
        anywhere = torch.zeros_like(distance)  # of the last head
        return torch.cat([near, anywhere], dim=1) + hidden

    def forward(self, x: Tensor, source: Tensor, distance: Tensor | None, seen: Tensor) -> Tensor:
        """Update ``x`` ``(B, queries, width)`` by attention to ``source`` ``(B, sites, width)``."""
        normed = self.attention_norm(x)
        normed_source = self.attention_norm(source)
        query = self._by_head(self.query(normed))
        key = self._by_head(self.key(normed_source))
        value = self._by_head(self.value(source))
        bias = self.bias(distance, seen)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        by_site = attended.transpose(1, 2)
        joined = by_site.reshape(x.shape)
        x = x + self.out(joined)
        normed = self.norm(x)
        inner = self.fc1(normed)
        inner = F.gelu(inner)
        return x + self.fc2(inner)

    def _by_head(self, states: Tensor) -> Tensor:
        """Return ``(B, n, width)`` as ``(B, heads, n, width / heads)``."""
        by_head = states.unflatten(2, (self.heads, -1))
        return by_head.transpose(1, 2)


class MaskedViT(nn.Module):
    """Encoder, decoder and gene embedding.

    Shapes: ``B`` windows of ``S`` sites with ``m`` channels. A site is *shown* (its values enter), hidden (predicted
    from the others) or empty (neither; it is never attended to).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.genes = nn.Embedding(config.n_genes, width)
        nn.init.normal_(self.genes.weight, std=width**-0.5)
        self.mask_token = nn.Parameter(torch.zeros(width))
        # of each gene in the training slices
        self.register_buffer("autocorrelation", torch.zeros(config.n_genes))
        self.encoder = _blocks(config, config.num_layers, config.ffn_size)
        self.decoder = _blocks(config, config.decoder_layers, config.decoder_ffn_size)
        self.readout = nn.Linear(width, width)
        self.fusion: nn.Linear | None = None
        if config.fuse:
            self.fusion = nn.Linear(2 * width, width)

    def tokens(self, values: Tensor, genes: Tensor, shown: Tensor | None = None) -> Tensor:
        """Return ``(B, S, width)`` from values ``(B, S, m)`` and their genes ``(B, m)``, -1 for no gene.

        The sum over channels is divided by the mean square of their embeddings, so that it is the same estimate of a
        site's state from few genes and from many. Values of sites that are not ``shown`` ``(B, S)``, and of no gene,
        are not read: whatever they are, NaN too, they reach neither outputs nor gradients.
        """
        known = genes >= 0
        used = known.unsqueeze(1)
        if shown is not None:
            is_shown = shown.unsqueeze(-1)
            used = used & is_shown
        values = torch.where(used, values, 0.0)
        table = self.gene_table(genes)
        summed = torch.einsum("bsm,bmw->bsw", values, table)
        square = table.square().sum(dim=(1, 2))
        factor = self.share(square)
        factor = factor.view(-1, 1, 1)
        return summed * factor

    def gene_table(self, genes: Tensor) -> Tensor:
        """Return the embeddings of genes, zero for -1."""
        embeddings = self.genes(genes.clamp_min(0))
        known = genes >= 0
        known = known.unsqueeze(-1)
        return embeddings * known

    def share(self, square: Tensor) -> Tensor:
        """Return the factor that goes with a sum of squared embeddings."""
        return self.config.width / square.clamp_min(1e-6)

    def encode(self, tokens: Tensor, places: Tensor, shown: Tensor) -> Tensor:
        """Return the states of shown sites, ``(B, S, width)``; zero elsewhere. Only shown sites are computed.

        Parameters
        ----------
        tokens
            ``(B, S, width)``.
        places
            ``(B, S, 2)``, x and y in pitches.
        shown
            bool ``(B, S)``.
        """
        n_shown = shown.sum(dim=1)
        most = max(int(n_shown.max()), 1)
        shown_first = torch.argsort(~shown, dim=1, stable=True)
        order = shown_first[:, :most]
        index = order.unsqueeze(-1)
        enters = shown.gather(1, order)
        is_token = enters.unsqueeze(-1)
        every_number = index.expand(-1, -1, tokens.shape[2])
        chosen = tokens.gather(1, every_number)
        x = torch.where(is_token, chosen, 0.0)
        both_axes = index.expand(-1, -1, 2)
        shown_places = places.gather(1, both_axes)
        if self.config.positions == "sincos":
            x = x + self.positions(shown_places, places)
        seen = self._seen(enters)
        distance = self._distance(shown_places)
        for block in self.encoder:
            x = block(x, x, distance, seen)
        states = torch.zeros_like(tokens)
        return states.scatter(1, every_number, x * is_token)

    def decode(self, states: Tensor, places: Tensor, shown: Tensor) -> Tensor:
        """Return a state for every site, ``(B, S, width)``, from those of the shown ones."""
        is_shown = shown.unsqueeze(-1)
        x = torch.where(is_shown, states, self.mask_token)
        if self.config.positions == "sincos":
            x = x + self.positions(places, places)
        seen = self._seen(shown)
        distance = self._distance(places)
        for block in self.decoder:
            x = block(x, x, distance, seen)
        return x

    def predict(self, states: Tensor, genes: Tensor) -> Tensor:
        """Return the predicted values ``(B, S, m)`` of genes ``(B, m)``: embedding times state (eq 8)."""
        table = self.gene_table(genes)
        states = self.state(states)
        return torch.einsum("bsw,bmw->bsm", states, table)

    def state(self, states: Tensor) -> Tensor:
        """Return what gene embeddings are multiplied with, ``(..., width)``."""
        return self.readout(states)

    def positions(self, places: Tensor, window: Tensor) -> Tensor:
        """Return 2-D sines of the place in the window, ``(B, S, width)``."""
        start = window.amin(dim=1, keepdim=True)
        offset = places - start
        quarter = self.config.width // 4
        step = torch.arange(quarter, device=places.device)
        rate = LONGEST ** (-step / quarter)
        angle = offset.unsqueeze(-1) * rate
        waves = torch.cat([angle.sin(), angle.cos()], dim=-1)
        return waves.flatten(2)

    def flops(self, sites: int, channels: int) -> float:
        """Return the operations of one window of so many sites and channels, forward."""
        config = self.config
        tokens = 2 * sites * channels * config.width
        encoder_layer = self._layer_flops(sites, config.ffn_size)
        decoder_layer = self._layer_flops(sites, config.decoder_ffn_size)
        encoder = config.num_layers * encoder_layer
        decoder = config.decoder_layers * decoder_layer
        return tokens + encoder + decoder

    def _layer_flops(self, sites: int, ffn: int) -> float:
        width = self.config.width
        per_site = 4 * width + 2 * ffn + 2 * sites
        return 2 * sites * width * per_site

    def _seen(self, shown: Tensor) -> Tensor:
        """Return what each site may attend to, bool ``(B, queries or 1, sites)``."""
        if self.config.context:
            return shown[:, None, :]
        batch, sites = shown.shape
        itself = torch.eye(sites, dtype=torch.bool, device=shown.device)
        return itself.expand(batch, -1, -1)

    def _distance(self, places: Tensor) -> Tensor | None:
        if self.config.positions != "distance" or not self.config.context:
            return None
        return _exact_distance(places)


def _radii(n: int) -> Tensor:
    """Return the ranges of the heads of a new layer, in pitches."""
    start = math.log10(SHORTEST_RADIUS)
    end = math.log10(LONGEST_RADIUS)
    radii = torch.logspace(start, end, max(n, 1))
    return radii[:n]


def _blocks(config: ViTConfig, n_layers: int, ffn: int) -> nn.ModuleList:
    """Return layers with random weights."""
    by_distance = config.positions == "distance"
    blocks = nn.ModuleList()
    for _ in range(n_layers):
        block = Block(config.width, config.num_heads, ffn, by_distance)
        blocks.append(block)
    return blocks


def _exact_distance(places: Tensor) -> Tensor:
    """Return distances between the sites of a window, ``(B, sites, sites)``.

    By matrix products, as cdist prefers, a site far from the origin would be 0.01 away from itself.
    """
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


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
    tokens = vit.tokens(values, genes, shown)
    encoded = vit.encode(tokens, places, shown)
    states = vit.decode(encoded, places, shown)
    if neighbors:
        states = neighbor_average(states, places, shown, neighbors)
    if vit.fusion is not None and domain is not None:
        shown_domain = domain.masked_fill(~shown, -1)
        means = domain_means(states, shown_domain)
        joined = torch.cat([states, means], dim=-1)
        states = vit.fusion(joined)
    return states


def nearest(places: Tensor, present: Tensor, k: int) -> Tensor:
    """Return 1 for each site's ``k`` nearest present sites, itself not counted, else 0; ``(B, S, S)``."""
    distance = _exact_distance(places)
    sites = places.shape[1]
    itself = torch.eye(sites, dtype=torch.bool, device=places.device)
    absent = ~present.unsqueeze(1)
    distance = distance.masked_fill(absent | itself, torch.inf)
    k = min(k, sites)
    near = distance.topk(k, dim=-1, largest=False)
    exists = near.values.isfinite()
    weight = exists.to(distance.dtype)
    none = torch.zeros_like(distance)
    return none.scatter(2, near.indices, weight)


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
        Where fewer are present, the mean is over those.
    """
    present_weight = present.to(places.dtype)
    itself = torch.diag_embed(present_weight)
    weight = nearest(places, present, k) + itself
    total = weight.sum(dim=-1, keepdim=True)
    is_present = present.unsqueeze(-1)
    states = torch.where(is_present, states, 0.0)
    return weight @ states / total.clamp_min(1)


def domain_means(states: Tensor, domain: Tensor) -> Tensor:
    """Return the mean state of each site's domain (eq 4), ``(B, S, width)``; zero for a site without one (-1)."""
    n_domains = int(domain.max()) + 1
    numbers = torch.arange(n_domains, device=domain.device)
    is_member = domain.unsqueeze(-1) == numbers
    has_domain = is_member.any(dim=-1, keepdim=True)
    member = is_member.to(states.dtype)
    states = torch.where(has_domain, states, 0.0)
    size = member.sum(dim=1).clamp_min(1)
    sums = member.transpose(1, 2) @ states
    means = sums / size.unsqueeze(-1)
    return member @ means
