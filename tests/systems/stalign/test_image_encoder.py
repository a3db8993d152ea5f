"""Image encoders: shapes, colors, what is frozen stays frozen, and folders of published models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from terrazzo.errors import CheckpointError, ConfigError
from terrazzo.systems.stalign import image_encoder
from terrazzo.systems.stalign.image_encoder import (
    FrozenImageEncoder,
    SpotEncoder,
    SpotEncoderConfig,
)


@pytest.fixture(scope="module")
def crops():
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 255, (3, 40, 40, 3), dtype=np.uint8)
    )


@pytest.fixture(scope="module")
def small():
    return FrozenImageEncoder.small(image_size=32, patch_size=8, width=32, num_layers=2)


def test_colors_are_standardized_by_fixed_numbers(crops):
    encoder = SpotEncoder(SpotEncoderConfig("tiny", 8))
    shares = crops.numpy() / 255
    standardized = (shares - image_encoder.IMAGENET_MEAN) / image_encoder.IMAGENET_STD
    expected = np.moveaxis(standardized, -1, 1).astype(np.float32)
    np.testing.assert_allclose(encoder.colors(crops).numpy(), expected, atol=1e-5)
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            encoder(crops), encoder(torch.from_numpy(expected)), rtol=1e-4, atol=1e-5
        )


def test_a_spot_encoder_gives_a_vector_and_learns(crops):
    encoder = SpotEncoder(SpotEncoderConfig("tiny", 12))
    out = encoder(crops)
    assert out.shape == (3, 12)
    out.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert encoder(crops[:, :28, :28]).shape == (3, 12)


def test_the_papers_encoder_is_a_resnet_50():
    with torch.device("meta"):
        encoder = SpotEncoder(SpotEncoderConfig(output_dim=512))
    n = sum(p.numel() for p in encoder.resnet.parameters())
    assert n == 23_508_032  # ResNet-50 without its classifier
    assert encoder.proj.in_features == 2048


def test_what_is_frozen_stays_so(small, crops):
    outer = torch.nn.Sequential(small, torch.nn.Linear(small.output_dim, 2))
    outer.train()
    assert not small.training
    assert not any(module.training for module in small.modules())
    before = {k: v.clone() for k, v in small.state_dict().items()}
    outer(crops).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in small.parameters())
    assert outer[1].weight.grad is not None
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())
    assert not small(crops).requires_grad


def test_features_are_those_of_the_batches(small, crops):
    done = []
    found = small.features([crops[:2].numpy(), crops[2:].numpy()], done.append)
    assert (found.shape, found.dtype, done) == ((3, 32), np.float32, [2, 1])
    np.testing.assert_allclose(found, small(crops).numpy(), rtol=1e-4, atol=1e-5)
    assert small.features([]).shape == (0, 32)


def test_a_fingerprint_changes_with_all_that_vectors_depend_on(small):
    def made(seed=0, **options):
        backbone = FrozenImageEncoder.small(
            seed, image_size=32, patch_size=8, width=32, num_layers=2
        ).backbone
        return FrozenImageEncoder(backbone, **{"image_size": 32, "readout": "mean", **options})

    first = made().fingerprint()
    assert first == small.fingerprint()
    others = [made(1), made(readout="cls"), made(mean=(0.5, 0.5, 0.5)), made(std=(0.5, 0.5, 0.5))]
    changed = made()
    with torch.no_grad():
        next(changed.backbone.parameters()).view(-1)[0] += 1e-3
    assert len({first, *(one.fingerprint() for one in [*others, changed])}) == 6


def vision_models():
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        Dinov2Config,
        Dinov2Model,
        ResNetConfig,
        ResNetModel,
        ViTConfig,
        ViTModel,
    )

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    yield "vit", ViTModel(ViTConfig(**sizes, intermediate_size=16)), "auto"
    yield (
        "vit without summary",
        ViTModel(ViTConfig(**sizes, intermediate_size=16), add_pooling_layer=False),
        "cls",
    )
    yield "dinov2", Dinov2Model(Dinov2Config(**sizes)), "auto"
    clip = CLIPVisionModel(CLIPVisionConfig(**sizes, intermediate_size=16))
    yield "clip", getattr(clip, "vision_model", clip), "auto"
    yield (
        "resnet",
        ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
        "mean",
    )


def test_an_encoder_is_made_again_from_its_description(crops):
    for name, backbone, readout in vision_models():
        first = FrozenImageEncoder(backbone, 32, mean=(0.5, 0.4, 0.3), readout=readout)
        said = json.loads(json.dumps(first.description()))
        assert said == first.description(), name
        again = FrozenImageEncoder.from_description(said)
        assert (again.output_dim, again.readout) == (first.output_dim, first.readout), name
        again.load_state_dict(first.state_dict())
        assert again.fingerprint() == first.fingerprint(), name
        torch.testing.assert_close(again(crops), first(crops))


@pytest.mark.parametrize(
    "change", [{"model": {"model_type": "bert"}}, {"model": {}}, {"image_size": None}]
)
def test_what_describes_no_encoder_is_refused(small, change):
    with pytest.raises(ConfigError, match="describes no frozen image encoder"):
        FrozenImageEncoder.from_description({**small.description(), **change})


def write(folder, model, **sheet):
    model.save_pretrained(folder)
    if sheet:
        (folder / "preprocessor_config.json").write_text(json.dumps(sheet))
    return folder


def test_a_folder_of_transformers_gives_what_the_model_gives(tmp_path, crops):
    from transformers import ResNetConfig, ResNetModel

    model = ResNetModel(
        ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], layer_type="basic"
        )
    ).eval()
    sheet = {
        "crop_size": {"height": 48, "width": 48},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.2, 0.2, 0.2],
    }
    encoder = FrozenImageEncoder.from_folder(write(tmp_path, model, **sheet))
    assert (encoder.image_size, encoder.output_dim) == (48, 16)
    pixels = (crops.permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
    pixels = torch.nn.functional.interpolate(pixels, (48, 48), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder(crops), model(pixels).pooler_output.flatten(1), rtol=1e-4, atol=1e-5
        )


def test_a_vision_transformer_without_a_summary_is_read_at_its_first_token(tmp_path, crops, small):
    encoder = FrozenImageEncoder.from_folder(write(tmp_path, small.backbone))
    assert encoder.image_size == 32
    assert (
        getattr(encoder.backbone, "pooler", None) is None
    )  # else its weights would be drawn at random
    pixels = torch.nn.functional.interpolate(
        encoder.colors(crops), (32, 32), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        states = small.backbone(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(encoder(crops), states[:, 0], rtol=1e-4, atol=1e-5)
    mean = FrozenImageEncoder.from_folder(tmp_path, readout="mean")
    torch.testing.assert_close(mean(crops), states.mean(dim=1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="no summary"):
        FrozenImageEncoder.from_folder(tmp_path, readout="pooler")


def test_of_clip_the_image_part_is_taken(tmp_path, crops):
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    text = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 20,
        "max_position_embeddings": 5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    encoder = FrozenImageEncoder.from_folder(write(tmp_path, model))
    assert encoder(crops).shape == (3, 16)
    assert not any("text" in name for name in encoder.state_dict())


def test_folders_that_cannot_be_used_are_refused(tmp_path, small):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        FrozenImageEncoder.from_folder(tmp_path / "none")
    write(tmp_path / "a", small.backbone)
    weights = tmp_path / "a" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="could not be loaded"):
        FrozenImageEncoder.from_folder(tmp_path / "a")
    weights.unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        FrozenImageEncoder.from_folder(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text('{"model_type": "no such model"}')
    with pytest.raises(CheckpointError, match="could not be loaded"):
        FrozenImageEncoder.from_folder(tmp_path / "a")


def test_weights_that_are_missing_are_not_drawn(tmp_path, small):
    from safetensors.torch import load_file, save_file

    write(tmp_path, small.backbone)
    held = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in held if "layernorm" in name.lower())
    save_file(
        {k: v for k, v in held.items() if k != gone},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(CheckpointError, match="missing"):
        FrozenImageEncoder.from_folder(tmp_path)


def test_a_model_of_text_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    with pytest.raises(CheckpointError, match="sees no images"):
        FrozenImageEncoder.from_folder(write(tmp_path, BertModel(BertConfig(**sizes))))


def test_impossible_settings_are_refused(small):
    with pytest.raises(ConfigError, match="size"):
        SpotEncoderConfig("huge")
    with pytest.raises(ConfigError, match="output_dim"):
        SpotEncoderConfig("tiny", 0)
    with pytest.raises(ConfigError, match="readout"):
        FrozenImageEncoder(small.backbone, 32, readout="first")
