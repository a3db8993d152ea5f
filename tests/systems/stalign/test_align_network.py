"""ST-Align's network: four vectors and their fusion, and what is trained of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from terrazzo.errors import ConfigError
from terrazzo.systems.stalign.image_encoder import SpotEncoderConfig
from terrazzo.systems.stalign.network import AlignConfig, AlignNet, FrozenFeatures
from terrazzo.systems.stalign.value_encoder import ValueEncoderConfig

VALUES = ValueEncoderConfig(9, 3, 8, 1, 2, 16, output_dim=10)
CONFIG = AlignConfig(
    10, 6, 5, VALUES, SpotEncoderConfig("tiny", 10), spot_side=20, fusion_tokens=3, fusion_width=8
)


def net(**changes: Any) -> AlignNet:
    torch.manual_seed(0)
    return AlignNet(replace(CONFIG, **changes)).eval()


def crops(side: int = 12) -> torch.Tensor:
    return torch.randint(
        0, 256, (4, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@torch.no_grad()
def test_every_vector_has_the_same_width() -> None:
    module = net()
    r, e = module.spot_image(crops()), module.niche_image(torch.randn(4, 6))
    u, t = (
        module.spot_genes(torch.randn(4, 5)),
        module.niche_genes(torch.randn(4, 9), torch.arange(9) < 7),
    )
    assert {
        v.shape for v in (r, e, u, t, module.fuse("spot", r, u), module.fuse("niche", e, t))
    } == {(4, 10)}
    with pytest.raises(ConfigError, match="scale is 'slice'"):
        module.fuse("slice", r, u)  # type: ignore[arg-type]


@torch.no_grad()
def test_crops_are_enlarged_to_what_the_encoder_sees() -> None:
    module = net()
    pixels = module.ae_image.colors(crops())
    large = F.interpolate(pixels, (20, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(module.spot_image(crops()), module.ae_image(large))
    torch.testing.assert_close(net(spot_side=0).spot_image(crops()), module.ae_image(pixels))


@torch.no_grad()
def test_colors_of_the_slice_take_away_a_stain() -> None:
    module, bright = net(), crops()
    dark = (bright.float() * 0.5 + 30).to(torch.uint8)

    def own(some: torch.Tensor) -> torch.Tensor:
        values = some.float().view(-1, 3) / 255
        return torch.stack([values.mean(dim=0), values.std(dim=0)]).expand(4, 2, 3)

    same = module.spot_image(bright, own(bright))
    assert float((same - module.spot_image(dark, own(dark))).abs().max()) < 0.05
    assert float((module.spot_image(bright) - module.spot_image(dark)).abs().max()) > 0.05


@torch.no_grad()
def test_without_adaptive_encoders_all_four_are_linear_maps_of_features() -> None:
    module = net(adaptive=False)
    image, genes = torch.randn(4, 6), torch.randn(4, 5)
    torch.testing.assert_close(module.spot_image(image), module.ae_image.proj(image))
    torch.testing.assert_close(module.niche_genes(genes), module.ae_genes.proj(genes))
    assert not any("resnet" in name or "layers" in name for name, _ in module.named_parameters())


@torch.no_grad()
def test_features_are_standardized_by_what_was_fitted() -> None:
    part = FrozenFeatures(3, 2)
    values = torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, -2.0]])
    torch.testing.assert_close(part(values), part.proj(values))
    part.fit(values.mean(dim=0), values.std(dim=0, correction=0))
    torch.testing.assert_close(part(values), part.proj(torch.tensor([[-1.0, 0, 1], [1, 0, -1]])))
    assert torch.isfinite(part(values + 7)).all()  # one that never varied, and now does


def test_the_temperature_is_learned_where_asked_for() -> None:
    fixed, learned = net(), net(learn_temperature=True)
    assert float(fixed.temperature) == pytest.approx(0.07)
    assert not fixed.temperature.requires_grad
    learned.temperature.backward()
    assert float(learned.log_temperature.grad) == pytest.approx(0.07)
    with torch.no_grad():
        learned.log_temperature.fill_(-20.0)
        assert float(learned.temperature) == pytest.approx(0.01)
    assert set(dict(learned.named_parameters())) - set(dict(fixed.named_parameters())) == {
        "log_temperature"
    }
    assert set(learned.state_dict()) == set(fixed.state_dict())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": 0}, "at least 1"),
        ({"dim": 12}, "must be dim"),
        ({"temperature": 0.0}, "positive"),
        ({"fusion_mode": "sum"}, "mode"),
        ({"spot_side": -1}, "at least 0"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(CONFIG, **changes)
