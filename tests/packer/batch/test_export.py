"""Exports of a batch against plain loops over its images; test_export_models.py runs the models themselves."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack import ConstantDrop, FitTokens, Native, PackedBatch, Packing, pack_stream
from patchnpack.packer.batch.export import CLIP_MEAN, CLIP_STD, _warn_of_scaled_decode
from tests.images import encode_image

# N images of the batch, M token slots of a row, P patch size, C channels, gw x gh patches of an image

P = 4
PACKING = Packing(seq_len=52, patch_size=P, max_images=4, lookahead=4)
GRIDS = [(2, 2), (6, 4), (4, 2), (2, 6), (4, 4), (2, 2), (6, 2), (4, 6), (2, 4)]
EXPORTS = ["to_siglip2", "to_naflex", "to_qwen2_vl", "to_pixtral"]


def _pixels(number: int, gw: int, gh: int, mode: str = "RGB") -> np.ndarray:
    shape = (gh * P, gw * P, len(mode))
    pixels: np.ndarray = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
    return pixels


def _broken_png() -> bytes:
    """A PNG of 4 x 4 patches that ends in the middle: its header is read and its pixels are not."""
    return encode_image(_pixels(99, 4, 4), "PNG")[:-300]


def _batch(packing: Packing = PACKING, *, batch_size: int = 3, **sizes: Any) -> PackedBatch:
    """Nine images and a broken one in a batch of several packs; each image's label is its number."""
    mode = sizes.pop("mode", "RGB")
    grids = sizes.pop("grids", GRIDS)
    samples: list[tuple[Any, int]] = [(_pixels(i, gw, gh, mode), i) for i, (gw, gh) in enumerate(grids)]
    if sizes.pop("broken", mode == "RGB"):
        samples.insert(3, (_broken_png(), -1))
    packing = packing.replace(image_mode=mode)
    (batch,) = pack_stream(samples, packing, batch_size=batch_size)
    assert batch.num_images == len(grids)
    return batch


def _normalized(pixels: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    normalized: np.ndarray = (pixels / 255 - np.asarray(mean)) / np.asarray(std)
    return normalized


def _patch(pixels: np.ndarray, x: int, y: int) -> np.ndarray:
    return pixels[y * P : y * P + P, x * P : x * P + P]


def _raster(pixels: np.ndarray) -> list[tuple[int, int]]:
    height, width, _ = pixels.shape
    return [(x, y) for y in range(height // P) for x in range(width // P)]


def test_the_batch_of_these_tests_has_several_packs_a_gap_and_padding() -> None:
    batch = _batch()
    assert batch.image_mask.any(1).sum() == 3
    ends = (batch.segment_ids == 0).int().diff(dim=1)
    assert (ends < 0).any(), "no padding between two images of a pack"
    assert (batch.segment_ids == 0).any(1).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("most", [None, 30])
@pytest.mark.parametrize("export", ["to_siglip2", "to_naflex"])
def test_rows_hold_each_images_patches_in_raster_order_and_zeros(export: str, most: int | None, mode: str) -> None:
    batch = _batch(mode=mode)
    mean, std = (0.3, 0.4, 0.5, 0.6)[: len(mode)], (0.2, 0.3, 0.4, 0.7)[: len(mode)]
    found = getattr(batch, export)(most, mean, std)
    M = most or 24
    values = found["pixel_values" if export == "to_siglip2" else "patches"]
    assert values.shape == (9, M, P * P * len(mode))
    assert values.dtype == torch.float32
    for row, image in enumerate(batch.images()):
        pixels = _normalized(image.pixels(), mean, std)
        tokens = _raster(pixels)
        want = np.zeros(values.shape[1:])
        want[: len(tokens)] = [_patch(pixels, x, y).reshape(-1) for x, y in tokens]
        np.testing.assert_allclose(values[row].numpy(), want, atol=1e-5)
        assert not values[row, len(tokens) :].any()
        valid = [1] * len(tokens) + [0] * (M - len(tokens))
        if export == "to_siglip2":
            assert found["pixel_attention_mask"][row].tolist() == valid
            assert tuple(found["spatial_shapes"][row].tolist()) == image.grid[::-1]
        else:
            assert found["patch_valid"][row].tolist() == [bool(v) for v in valid]
            coords = [[y, x] for x, y in tokens] + [[0, 0]] * (M - len(tokens))
            assert found["patch_coord"][row].tolist() == coords


def test_masks_and_shapes_have_the_dtypes_of_the_models_processors() -> None:
    batch = _batch()
    siglip2, naflex, qwen, pixtral = (getattr(batch, export)() for export in EXPORTS)
    assert list(siglip2) == ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    assert [siglip2[name].dtype for name in siglip2] == [torch.float32, torch.int32, torch.int64]
    assert list(naflex) == ["patches", "patch_coord", "patch_valid"]
    assert [naflex[name].dtype for name in naflex] == [torch.float32, torch.int64, torch.bool]
    assert list(qwen) == ["pixel_values", "image_grid_thw"]
    assert [qwen[name].dtype for name in qwen] == [torch.float32, torch.int64]
    assert list(pixtral) == ["pixel_values", "image_sizes"]
    assert [pixtral[name].dtype for name in pixtral] == [torch.float32, torch.int64]


@pytest.mark.parametrize(("merge", "frames"), [(2, 2), (1, 1), (2, 3)])
def test_qwen2_vl_takes_blocks_in_raster_order_with_channels_first_and_frames_repeated(merge: int, frames: int) -> None:
    batch = _batch()
    found = batch.to_qwen2_vl(merge_size=merge, temporal_patch_size=frames)
    want, thw = [], []
    for image in batch.images():
        pixels = _normalized(image.pixels(), CLIP_MEAN, CLIP_STD)
        gw, gh = image.grid
        thw.append([1, gh, gw])
        for top in range(0, gh, merge):
            for left in range(0, gw, merge):
                for y in range(top, top + merge):
                    for x in range(left, left + merge):
                        patch = _patch(pixels, x, y).transpose(2, 0, 1)
                        want.append(np.stack([patch] * frames, 1).reshape(-1))
    assert found["image_grid_thw"].tolist() == thw
    np.testing.assert_allclose(found["pixel_values"].numpy(), np.stack(want), atol=1e-5)


def _of_samples(batch: PackedBatch, sizes: list[list[int]]) -> PackedBatch:
    samples = torch.zeros_like(batch.samples)
    for b, pack in enumerate(sizes):
        numbers = [s for s, size in enumerate(pack, 1) for _ in range(size)]
        samples[b, : len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
    return dataclasses.replace(batch, samples=samples)


def _clips() -> PackedBatch:
    """Nine images of 4 x 2 patches in three packs, as samples of 3, 1, 4 and 1 images."""
    batch = _batch(
        PACKING.replace(seq_len=40, algorithm="next_fit", lookahead=1, fill="none"), grids=[(4, 2)] * 9, broken=False
    )
    assert batch.image_mask.sum(1).tolist() == [4, 4, 1]
    return _of_samples(batch, [[3, 1], [4], [1]])


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_qwen2_vl_gets_frames_of_a_sample_in_patches_that_span_them_and_repeats_the_last(frames: int) -> None:
    batch = _clips()
    found = batch.to_qwen2_vl(0.5, 0.5, temporal_patch_size=frames, video=True)
    want, thw = [], []
    for sample in batch.images_by_sample():
        pixels = [_normalized(image.pixels(), 0.5, 0.5) for image in sample.images]
        pixels += pixels[-1:] * (-len(pixels) % frames)
        thw.append([len(pixels) // frames, 2, 4])
        for first in range(0, len(pixels), frames):
            for left, y, x in [(left, y, x) for left in (0, 2) for y in (0, 1) for x in (0, 1)]:
                patches = [_patch(one, left + x, y).transpose(2, 0, 1) for one in pixels[first : first + frames]]
                want.append(np.stack(patches, 1).reshape(-1))
    assert list(found) == ["pixel_values_videos", "video_grid_thw"]
    assert found["video_grid_thw"].tolist() == thw
    np.testing.assert_allclose(found["pixel_values_videos"].numpy(), np.stack(want), atol=1e-5)


def test_frames_of_unequal_grids_are_refused_as_a_video_and_exported_as_images() -> None:
    batch = _of_samples(_batch(grids=[(2, 2), (4, 2), (2, 2)], broken=False), [[1, 2]])
    a, b = (f"{gw}x{gh}" for gw, gh in batch.grids[0, 1:3].tolist())
    message = rf"the images '.' and '.' of one sample have grids of {a} and {b} patches.*or leave out video=True"
    with pytest.raises(ValueError, match=message):
        batch.to_qwen2_vl(video=True)
    assert batch.to_qwen2_vl()["image_grid_thw"].shape == (3, 3)


@pytest.mark.parametrize("export", EXPORTS)
def test_each_row_names_the_sample_of_its_image_if_asked(export: str) -> None:
    batch = _clips()
    found, plain = getattr(batch, export)(samples=True), getattr(batch, export)()
    assert found.pop("samples").tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 3]
    assert list(found) == list(plain)
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert getattr(_batch(), export)(samples=True)["samples"].tolist() == list(range(9))
    if export == "to_qwen2_vl":
        with pytest.raises(ValueError, match="samples is True with video=True, where row i is sample i"):
            batch.to_qwen2_vl(samples=True, video=True)


def test_pixtral_gets_each_image_in_the_corner_of_a_canvas_of_zeros() -> None:
    batch = _batch()
    found = batch.to_pixtral()
    assert found["pixel_values"].shape == (9, 3, 6 * P, 6 * P)
    assert found["pixel_values"].is_contiguous()
    for canvas, size, image in zip(found["pixel_values"], found["image_sizes"].tolist(), batch.images(), strict=True):
        pixels = image.pixels()
        height, width, _ = pixels.shape
        assert size == [height, width]
        want = np.zeros(canvas.shape)
        want[:, :height, :width] = _normalized(pixels, CLIP_MEAN, CLIP_STD).transpose(2, 0, 1)
        np.testing.assert_allclose(canvas.numpy(), want, atol=1e-5)


@pytest.mark.parametrize("export", EXPORTS)
def test_rows_come_in_the_order_of_the_labels_under_the_image_mask(export: str) -> None:
    grids = [(2, 2)] * 9
    batch = _batch(PACKING.replace(seq_len=12), batch_size=5, grids=grids)
    labels = batch.labels[batch.image_mask].tolist()
    assert sorted(labels) == list(range(9))
    first = next(iter(getattr(batch, export)(mean=0.0, std=1.0).values())) * 255
    for i, label in enumerate(labels):
        red = {"to_qwen2_vl": lambda i: first[4 * i, 0], "to_pixtral": lambda i: first[i, 0, 0, 0]}
        found = red.get(export, lambda i: first[i, 0, 0])(i)
        assert round(float(found)) == _pixels(label, 2, 2)[0, 0, 0]


def test_padded_edges_are_exported_as_black_pixels() -> None:
    (batch,) = pack_stream([(np.full((5, 6, 3), 255, np.uint8), 0)], PACKING, batch_size=1)
    canvas = batch.to_pixtral(mean=0.5, std=0.5)["pixel_values"][0]
    assert canvas.shape == (3, 8, 8)
    assert (canvas == 1).sum() == 5 * 6 * 3
    assert (canvas == -1).sum() == (64 - 30) * 3


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_the_exact_result_rounded_once(export: str, dtype: torch.dtype) -> None:
    batch = _batch()
    exact = next(iter(getattr(batch, export)(dtype=torch.float64).values()))
    found = next(iter(getattr(batch, export)(dtype=dtype).values()))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(
    ("export", "shapes"),
    [
        ("to_siglip2", [(0, 0, 48), (0, 0), (0, 2)]),
        ("to_naflex", [(0, 0, 48), (0, 0, 2), (0, 0)]),
        ("to_qwen2_vl", [(0, 96), (0, 3)]),
        ("to_pixtral", [(0, 3, 0, 0), (0, 2)]),
    ],
)
def test_an_empty_batch_exports_no_rows(export: str, shapes: list[tuple[int, ...]]) -> None:
    batch = _batch()
    fields = batch.to_dict()
    for name in ("segment_ids", "patches", "coords", "grids", "image_mask"):
        fields[name] = torch.zeros_like(fields[name])
    given = {field.name for field in dataclasses.fields(PackedBatch) if field.init} - {"samples", "frames"}
    made = {name: value for name, value in fields.items() if name in given}
    empty = PackedBatch(**made | {"keys": [[], [], []]})
    assert [tuple(tensor.shape) for tensor in getattr(empty, export)().values()] == shapes


def test_from_dict_inverts_to_dict() -> None:
    batch = _batch()
    fields = {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in batch.to_dict().items()}
    again = PackedBatch.from_dict(fields)
    assert again.patches is fields["patches"]
    assert again.lengths == batch.lengths
    assert [image.key for image in again.images()] == [image.key for image in batch.images()]
    with pytest.raises(KeyError, match="cu_seqlens"):
        PackedBatch.from_dict({name: fields[name] for name in fields if name != "cu_seqlens"})


# Errors


@pytest.mark.parametrize("export", EXPORTS)
def test_an_image_with_dropped_tokens_is_an_error_that_names_it(export: str) -> None:
    packing = PACKING.replace(token_drop=ConstantDrop(0.5), fill="none")
    (batch,) = pack_stream([(_pixels(0, 4, 4), 0), (_pixels(1, 2, 4), 0)], packing, batch_size=1)
    with pytest.raises(
        ValueError, match=r"image '.+' holds \d+ of its \d+ tokens \(2 of 2 images have dropped tokens\).*NoDrop"
    ):
        getattr(batch, export)()


@pytest.mark.parametrize("export", ["to_siglip2", "to_naflex"])
def test_a_row_too_short_for_an_image_is_an_error_with_the_remedy(export: str) -> None:
    batch = _batch()
    assert len(getattr(batch, export)(24)) == 3
    with pytest.raises(
        ValueError, match=r"max_num_patches is 23 and image '.+' has 24 tokens; give at least 24.*\(23\)"
    ):
        getattr(batch, export)(23)
    with pytest.raises(ValueError, match="max_num_patches is 0"):
        getattr(batch, export)(0)


def test_a_grid_that_does_not_divide_into_blocks_is_an_error_with_the_remedy() -> None:
    (batch,) = pack_stream([(_pixels(0, 4, 3), 0)], PACKING, batch_size=1)
    with pytest.raises(ValueError, match=r"a grid of 4x3 patches.*merges 2x2.*use Packing\(grid_multiple=2\)"):
        batch.to_qwen2_vl()
    assert len(batch.to_qwen2_vl(merge_size=1)["pixel_values"]) == 12
    packing = PACKING.replace(grid_multiple=2, resolution=Native(edge="resize"))
    (batch,) = pack_stream([(_pixels(0, 4, 3), 0)], packing, batch_size=1)
    assert batch.to_qwen2_vl()["image_grid_thw"].tolist() == [[1, 4, 4]]


MISTAKES: list[tuple[Callable[[PackedBatch], Any], str]] = [
    (lambda batch: batch.to_siglip2(dtype=torch.uint8), "dtype is torch.uint8"),
    (lambda batch: batch.to_naflex(std=0.0), "std is 0.0; it must be above 0"),
    (lambda batch: batch.to_pixtral(std=(0.5, float("nan"), 0.5)), "std is .*nan.*; it must be above 0"),
    (lambda batch: batch.to_pixtral(mean=(0.5, 0.5)), "mean has 2 values for 3 channels"),
    (lambda batch: batch.to_qwen2_vl(merge_size=0), "merge_size is 0"),
    (lambda batch: batch.to_qwen2_vl(temporal_patch_size=1.5), "temporal_patch_size is 1.5"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_an_invalid_argument_is_named(mistake: Callable[[PackedBatch], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mistake(_batch())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, which is not available here")
@pytest.mark.parametrize("export", EXPORTS)
def test_an_export_on_a_gpu_stays_there_and_holds_the_same(export: str) -> None:
    here, there = (getattr(batch, export)() for batch in (_batch(), _batch().to("cuda")))
    for name in here:
        assert there[name].is_cuda
        torch.testing.assert_close(there[name].cpu(), here[name])


def _shrunk(**options: Any) -> PackedBatch:
    packing = PACKING.replace(resolution=FitTokens(4), **options)
    (batch,) = pack_stream([(encode_image(_pixels(0, 8, 8), "JPEG"), 0)], packing, batch_size=1)
    return batch


@pytest.mark.parametrize("export", EXPORTS)
def test_exports_warn_once_of_pixels_decoded_at_a_lower_scale(export: str) -> None:
    _warn_of_scaled_decode.cache_clear()
    with warnings.catch_warnings():  # none of these may warn
        warnings.simplefilter("error")
        getattr(_shrunk(scaled_decode=False), export)()
        getattr(_batch(), export)()  # images at their own size
    with pytest.warns(UserWarning, match=r"scaled_decode is True: .* use Packing\(scaled_decode=False\)") as caught:
        getattr(_shrunk(), export)()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(_shrunk(), export)()
    _warn_of_scaled_decode.cache_clear()


def test_a_batch_says_how_it_was_decoded_wherever_it_goes() -> None:
    batch = _shrunk()
    assert batch.scaled_decode
    assert batch.to("cpu").scaled_decode
    assert PackedBatch.from_dict(batch.to_dict()).scaled_decode
    assert not _shrunk(scaled_decode=False).scaled_decode
