"""Models of transformers with random weights: exports give the outputs of the model's own processor.

The processors are those that work on numpy arrays: `Siglip2ImageProcessorPil` and the like.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack import FitTokens, Native, PackedBatch, Packing, pack_stream
from patchnpack.packer.batch.export import CLIP_MEAN, CLIP_STD

# Importing a model takes seconds, so a missing package is detected first.
transformers: Any = pytest.importorskip("transformers", reason="the group `frameworks` is not installed")

# P patch size, n tokens of an image

P = 16
SIZES = [(50, 40), (96, 32), (40, 100), (64, 64), (33, 90), (128, 48), (32, 32)]


def _images() -> list[np.ndarray]:
    """Smooth pictures with some noise, as (height, width, 3)."""
    rng = np.random.default_rng(0)
    images = []
    for width, height in SIZES:
        y, x = np.mgrid[:height, :width]
        waves = [128 + 90 * np.sin(x * a + y * b) for a, b in rng.uniform(0.02, 0.3, (3, 2))]
        images.append(np.clip(np.stack(waves, 2) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8))
    return images


def _batch(**options: Any) -> PackedBatch:
    settled: dict[str, Any] = {"seq_len": 64, "patch_size": P, "resolution": Native(edge="resize"), "max_images": 3}
    packing = Packing(**(settled | options))
    (batch,) = pack_stream([(image, i) for i, image in enumerate(_images())], packing, batch_size=4)
    assert batch.num_images == len(SIZES)
    return batch


def _randomized(model: torch.nn.Module) -> Any:
    """The model with weights large enough that each one affects the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.02 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * scale + (1 if parameter.ndim == 1 else 0))
    return model.eval()


def _siglip2() -> Any:
    config = transformers.Siglip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_patches=25, patch_size=P
    )
    return _randomized(transformers.Siglip2VisionModel(config))


@torch.no_grad()
def test_siglip2_gives_each_image_the_output_of_its_own_processor() -> None:
    batch, model = _batch(), _siglip2()
    found = model(**batch.to_siglip2())
    processor = transformers.Siglip2ImageProcessorPil(do_resize=False, patch_size=P, max_num_patches=40)
    for i, image in enumerate(batch.images()):
        inputs = processor(image.pixels(), return_tensors="pt", input_data_format="channels_last")
        want, n = model(**inputs), len(image.patches)
        torch.testing.assert_close(found.last_hidden_state[i, :n], want.last_hidden_state[0, :n], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.pooler_output[i], want.pooler_output[0], atol=1e-4, rtol=1e-4)
    assert found.pooler_output.std(0).min() > 1e-2  # outputs must differ between images, or equality proves nothing


def test_siglip2_at_the_largest_size_that_fits_equals_its_processor_on_the_whole_image() -> None:
    batch = _batch(resolution=FitTokens(24, upsample=True), interpolation="bilinear")
    found = batch.to_siglip2(24)
    processor = transformers.Siglip2ImageProcessorPil(patch_size=P, max_num_patches=24)
    images = [_images()[label] for label in batch.labels[batch.image_mask].tolist()]
    want = processor(images, return_tensors="pt", input_data_format="channels_last")
    assert list(want) == list(found)
    for name in ("spatial_shapes", "pixel_attention_mask"):
        assert found[name].tolist() == want[name].tolist()
        assert found[name].dtype == want[name].dtype
    # Pillow and pillow-simd round some pixels differently.
    torch.testing.assert_close(found["pixel_values"], want["pixel_values"].float(), atol=2.01 / 127.5, rtol=0)


@torch.no_grad()
def test_pixtral_gives_each_image_the_output_of_its_own_processor() -> None:
    config = transformers.PixtralVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=128, patch_size=P
    )
    batch, model = _batch(), _randomized(transformers.PixtralVisionModel(config))
    found = model(**batch.to_pixtral()).last_hidden_state[0].split(batch.lengths)
    processor = transformers.PixtralImageProcessorPil(do_resize=False, patch_size={"height": P, "width": P})
    for output, image in zip(found, batch.images(), strict=True):
        inputs = processor(image.pixels(), return_tensors="pt", input_data_format="channels_last")
        torch.testing.assert_close(output, model(**inputs).last_hidden_state[0], atol=1e-4, rtol=1e-4)
    assert torch.stack([output.mean(0) for output in found]).std(0).min() > 1e-2


def test_pixtral_gets_the_tensors_of_its_own_processor() -> None:
    batch = _batch()
    processor = transformers.PixtralImageProcessorPil(do_resize=False, patch_size={"height": P, "width": P})
    pixels = [image.pixels() for image in batch.images()]
    want, found = processor(pixels, return_tensors="pt", input_data_format="channels_last"), batch.to_pixtral()
    assert list(want) == list(found)
    assert found["image_sizes"].tolist() == want["image_sizes"].tolist()
    torch.testing.assert_close(found["pixel_values"], want["pixel_values"].float(), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", ["Qwen2VL", "Qwen2_5_VL"])
def test_qwen2_vl_gives_each_image_the_output_of_its_own_processor(family: str) -> None:
    batch = _batch(patch_size=14, grid_multiple=2)
    if family == "Qwen2VL":
        from transformers.models.qwen2_vl import configuration_qwen2_vl, modeling_qwen2_vl

        config = configuration_qwen2_vl.Qwen2VLVisionConfig(depth=2, embed_dim=32, hidden_size=24, num_heads=2)
        model = _randomized(modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel(config))
    else:
        from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl, modeling_qwen2_5_vl

        sizes: Any = {"hidden_size": 32, "out_hidden_size": 24, "num_heads": 2, "intermediate_size": 64}
        windows: Any = {"window_size": 56, "fullatt_block_indexes": [1]}
        other = configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig(depth=2, **sizes, **windows)
        model = _randomized(modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel(other))
    processor = transformers.Qwen2VLImageProcessorPil(do_resize=False)
    pixels = [image.pixels() for image in batch.images()]
    inputs = processor(pixels, return_tensors="pt", input_data_format="channels_last")
    exported = batch.to_qwen2_vl()
    assert list(inputs) == list(exported)
    assert exported["image_grid_thw"].tolist() == inputs["image_grid_thw"].tolist()
    torch.testing.assert_close(exported["pixel_values"], inputs["pixel_values"], atol=1e-5, rtol=0)

    found = model(exported["pixel_values"], grid_thw=exported["image_grid_thw"]).pooler_output
    for output, image in zip(found.split([n // 4 for n in batch.lengths]), pixels, strict=True):
        alone = processor(image, return_tensors="pt", input_data_format="channels_last")
        want = model(alone["pixel_values"], grid_thw=alone["image_grid_thw"]).pooler_output
        torch.testing.assert_close(output, want, atol=1e-4, rtol=1e-4)
    assert found.std(0).min() > 1e-2


@pytest.mark.parametrize("count", [1, 4, 5])
def test_qwen2_vl_gives_a_video_the_output_of_its_own_patches(count: int) -> None:
    from transformers.models.qwen2_vl import configuration_qwen2_vl, modeling_qwen2_vl

    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (56, 84, 3), np.uint8) for _ in range(count + 2)]
    (packed,) = pack_stream(
        [(frame, 0) for frame in frames],
        Packing(seq_len=24 * len(frames), patch_size=14, algorithm="next_fit"),
        batch_size=1,
    )
    numbers = torch.tensor([[1] * count + [2] * 2 + [0] * (64 - len(frames))], dtype=torch.int32)
    batch = dataclasses.replace(packed, samples=numbers)
    exported = batch.to_qwen2_vl(video=True)
    assert exported["video_grid_thw"].tolist() == [[-(-count // 2), 4, 6], [1, 4, 6]]

    # The patches of transformers' video processor, which itself needs torchvision: its rule, in its own order of axes.
    clip = torch.stack([torch.from_numpy(image.pixels()) for image in list(batch.images())[:count]]).permute(0, 3, 1, 2)
    clip = (clip / 255 - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    clip = torch.cat([clip, clip[-1:].expand(count % 2, -1, -1, -1)])
    patches = clip.view(-1, 2, 3, 2, 2, 14, 3, 2, 14).permute(0, 3, 6, 4, 7, 2, 1, 5, 8).flatten(0, 4).flatten(1)
    torch.testing.assert_close(exported["pixel_values_videos"][: len(patches)], patches, atol=1e-5, rtol=0)

    config = configuration_qwen2_vl.Qwen2VLVisionConfig(depth=2, embed_dim=32, hidden_size=24, num_heads=2)
    model = _randomized(modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel(config))
    with torch.no_grad():
        found = model(exported["pixel_values_videos"], grid_thw=exported["video_grid_thw"]).pooler_output
        want = model(patches, grid_thw=exported["video_grid_thw"][:1]).pooler_output
    torch.testing.assert_close(found[: len(want)], want, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("pos_embed", ["learned", "factorized"])
def test_timm_gives_each_image_the_output_of_its_own_patches(pos_embed: str) -> None:
    pytest.importorskip("torchvision", reason="timm needs torchvision, which is not installed")
    naflexvit = pytest.importorskip("timm.models.naflexvit", reason="timm is not installed")
    from timm.data.naflex_transforms import Patchify

    config = naflexvit.NaFlexVitCfg(
        patch_size=P, embed_dim=32, depth=2, num_heads=2, pos_embed=pos_embed, pos_embed_grid_size=(5, 5)
    )
    batch, model = _batch(), _randomized(naflexvit.NaFlexVit(config, num_classes=7))
    found = model(batch.to_naflex())
    for output, image in zip(found, batch.images(), strict=True):
        pixels = (torch.from_numpy(image.pixels()).permute(2, 0, 1) / 255 - 0.5) / 0.5
        alone = {name: tensor[None] for name, tensor in Patchify(P)(pixels).items()}
        torch.testing.assert_close(output, model(alone)[0], atol=1e-4, rtol=1e-4)
    assert found.std(0).min() > 1e-2


def test_native_resize_gives_the_sizes_that_qwens_processor_gives() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize  # without torchvision

    width, height = np.random.default_rng(0).integers(56, 2000, (2, 3000))
    for patch in (14, 16):
        found = Native(edge="resize").sizes(width, height, patch, 2).size[:, ::-1]
        wanted = [
            smart_resize(h, w, factor=2 * patch, min_pixels=1, max_pixels=10**8)
            for w, h in zip(width.tolist(), height.tolist(), strict=True)
        ]
        np.testing.assert_array_equal(found, wanted)
        ties = (width % (2 * patch) == patch) | (height % (2 * patch) == patch)
        assert ties.sum() > 100
