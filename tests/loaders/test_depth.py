"""Values of any depth and number of bands, the whole way from shards to model, pictures and statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchnpack import (
    ConstantDrop,
    ErrorPolicy,
    FitTokens,
    Native,
    PackedBatch,
    PackedImageLoader,
    Packing,
    pack_stream,
)
from patchnpack.loaders import Job
from patchnpack.loaders.imaging.values.bands import resize_values
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.packer.batch.pictures.drawing import draw_html, draw_packs
from patchnpack.pixel_stats import PERCENTILES, pixel_stats
from patchnpack.trainer import TrainConfig, train
from tests.images import write_tar
from tests.loaders.imaging import arrays

KINDS = [
    (dtype, channels) for dtype in arrays.DTYPES for channels in (1, 2, 5, 13) if (dtype, channels) != ("uint8", 1)
]


def sources(dtype: str, channels: int, n: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    sizes = rng.integers(17, 60, (n, 2)).tolist()
    return {f"{i:03}": arrays.values(dtype, channels, height, width, seed=i) for i, (height, width) in enumerate(sizes)}


def shard_of(images: dict[str, np.ndarray], path: Path) -> str:
    members = [(f"{key}.npy", arrays.npy(array)) for key, array in images.items()]
    labels = [(f"{key}.cls", str(i % 2).encode()) for i, key in enumerate(images)]
    write_tar(path, sorted(members + labels))
    return str(path)


def packing_of(dtype: Any, channels: int, **fields: Any) -> Packing:
    return Packing(**{"seq_len": 64, "patch_size": 8, "channels": channels, "dtype": dtype, **fields})


def pixels_of(batches: Iterator[PackedBatch] | Any) -> dict[str, np.ndarray]:
    return {image.key: image.pixels() for batch in batches for image in batch.images()}


def assert_equal_pixels(found: dict[str, np.ndarray], images: dict[str, np.ndarray]) -> None:
    assert found.keys() == images.keys()
    for key, array in images.items():
        height, width, _ = array.shape
        assert found[key].dtype == array.dtype
        assert np.array_equal(found[key][:height, :width], array)
        assert not found[key][height:].any()


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_values_reach_the_patches_of_a_loader_and_of_a_stream(dtype: Any, channels: int, tmp_path: Path) -> None:
    images, packing = sources(dtype, channels), packing_of(dtype, channels)
    shard = shard_of(images, tmp_path / "a.tar")
    assert packing.by_bands
    loader = PackedImageLoader(shard, packing, batch_size=2, image="npy", label="cls", cache_dir=tmp_path)
    batches = list(loader)
    assert batches[0].patches.dtype == getattr(torch, dtype)
    assert_equal_pixels(pixels_of(batches), images)
    pairs = ({"__key__": key, "npy": arrays.npy(array)} for key, array in images.items())
    assert_equal_pixels(pixels_of(pack_stream(pairs, packing, batch_size=2, image="npy")), images)
    items = [{"image": array, "label": i} for i, array in enumerate(images.values())]
    found = pixels_of(PackedImageLoader(items, packing, batch_size=2, label="label", cache_dir=tmp_path))
    assert_equal_pixels({f"{int(key):03}": pixels for key, pixels in found.items()}, images)


@pytest.mark.parametrize("store", ["images", "patches"])
@pytest.mark.parametrize(("dtype", "channels"), [("uint16", 1), ("int16", 5), ("float32", 2), ("uint8", 13)])
def test_packed_folders_hold_values(dtype: Any, channels: int, store: Any, tmp_path: Path) -> None:
    images, packing = sources(dtype, channels), packing_of(dtype, channels)
    shard = shard_of(images, tmp_path / "a.tar")
    Job(source=shard, out=str(tmp_path / "packed"), packing=packing, store=store, image="npy", label="cls").run()
    for batch_size in (1, 3):
        loader = PackedImageLoader(str(tmp_path / "packed"), batch_size=batch_size)
        batches = list(loader)
        assert all(batch.patches.dtype == getattr(torch, dtype) for batch in batches)
        assert_equal_pixels(pixels_of(batches), images)


def test_a_data_set_of_arrays_is_packed_as_files_of_their_values(tmp_path: Path) -> None:
    images = sources("int16", 2)
    items = [{"image": array, "label": i} for i, array in enumerate(images.values())]
    Job(source=items, out=str(tmp_path / "packed"), packing=packing_of("int16", 2), label="label").run()
    found = pixels_of(PackedImageLoader(str(tmp_path / "packed"), batch_size=2))
    assert_equal_pixels({f"{int(key):03}": pixels for key, pixels in found.items()}, images)


def test_resized_patches_are_those_of_resized_values(tmp_path: Path) -> None:
    images = sources("int16", 2)
    shard = shard_of(images, tmp_path / "a.tar")
    packing = packing_of("int16", 2, resolution=FitTokens(6))
    for key, pixels in pixels_of(PackedImageLoader(shard, packing, batch_size=2, image="npy")).items():
        array = images[key]
        height, width, _ = pixels.shape
        expected = resize_values(array, (0, 0, array.shape[1], array.shape[0]), (width, height), "bicubic")
        assert np.array_equal(pixels, expected)


def test_images_of_another_kind_are_counted_with_the_reason(tmp_path: Path) -> None:
    images = sources("uint16", 1, 3) | {"wrong": arrays.values("uint16", 2), "zeros": arrays.values("uint8", 1)}
    shard = shard_of(images, tmp_path / "a.tar")
    loader = PackedImageLoader(shard, packing_of("uint16", 1), batch_size=2, image="npy", cache_dir=tmp_path)
    assert pixels_of(loader).keys() == images.keys() - {"wrong", "zeros"}
    reasons = {bad["key"]: bad["reason"] for bad in loader.stats()["bad"]}
    assert reasons.keys() == {"wrong", "zeros"}
    assert "it has 2 bands of uint16, and Packing asks for 1 band of uint16" in reasons["wrong"]
    loader = PackedImageLoader(
        shard, packing_of("uint16", 1, convert="exact"), batch_size=2, image="npy", cache_dir=tmp_path
    )
    found = pixels_of(loader)
    assert np.array_equal(found["zeros"][:33, :41], images["zeros"])
    assert np.array_equal(found["wrong"][:33, :41], images["wrong"][..., :1])  # the second of two bands is alpha
    bad = ({"__key__": key, "npy": arrays.npy(array)} for key, array in images.items())
    stream = pack_stream(bad, packing_of("uint16", 1), batch_size=2, image="npy")
    assert pixels_of(stream).keys() == images.keys() - {"wrong", "zeros"}
    assert stream.stats()["bad_by_stage"] == {"header": 2}


def test_convert_makes_colours_and_leaves_8_bit_images_alone(tmp_path: Path) -> None:
    ct, photo = arrays.values("int16", 1), arrays.values("uint8", 3)
    write_tar(tmp_path / "a.tar", [("ct.npy", arrays.npy(ct)), ("photo.png", arrays.png(photo))])
    packing = Packing(seq_len=64, patch_size=8, convert="window:-160:240")
    found = pixels_of(PackedImageLoader(str(tmp_path / "a.tar"), packing, batch_size=2, image="npy;png"))
    assert np.array_equal(found["photo"][:33, :41], photo)
    windowed = np.rint((ct.astype(float) + 160).clip(0, 400) / 400 * 255).repeat(3, 2)
    assert np.array_equal(found["ct"][:33, :41], windowed)


def test_nan_is_a_bad_image_by_name(tmp_path: Path) -> None:
    images = sources("float32", 1, 3)
    images["001"][2, 3] = np.nan
    shard = shard_of(images, tmp_path / "a.tar")
    loader = PackedImageLoader(shard, packing_of("float32", 1), batch_size=2, image="npy")
    assert pixels_of(loader).keys() == {"000", "002"}
    assert "NaN" in loader.stats()["bad"][0]["reason"]
    mended = packing_of("float32", 1, convert=lambda x: np.nan_to_num(x))
    assert mended.convert is not None


def test_detail_of_float_values_decides_which_tokens_stay(tmp_path: Path) -> None:
    image = np.full((32, 32, 1), 0.25, np.float32)
    image[8:16, 16:24] = np.random.default_rng(0).random((8, 8, 1)) * 0.01  # one patch with contrast, far below 1
    shard = shard_of({"a": image}, tmp_path / "a.tar")
    packing = packing_of("float32", 1, token_drop=ConstantDrop(0.9), fill="none", select="detail")
    (batch,) = PackedImageLoader(shard, packing, batch_size=1, image="npy")
    assert [2, 1] in batch.coords[batch.segment_ids > 0].tolist()
    assert batch.num_tokens == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"std": (0.5, -1, 0.5)},
            r"std is \(0.5, -1.0, 0.5\); each must be finite, and a std above 0: see `patchnpack stats",
        ),
        ({"mean": (float("nan"), 0, 0)}, "mean is .*; each must be finite"),
        ({"std": (float("inf"),)}, "each must be finite"),
        ({"channels": 5, "mean": (1, 2, 3)}, "mean has 3 values for 5 channels; give one value, or one per channel"),
    ],
)
def test_a_mean_or_std_that_cannot_be_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NaViTConfig(num_classes=2, **fields)


def test_files_of_other_channels_alone_are_refused_with_the_remedy_before_training(tmp_path: Path) -> None:
    shard = shard_of({"a": arrays.values("uint16", 5)}, tmp_path / "a.tar")
    with pytest.raises(
        ValueError, match=r"it has 5 bands of uint16, and Packing asks for 13 bands of uint16.*--channels"
    ):
        PackedImageLoader(shard, packing_of("uint16", 13), batch_size=1, image="npy")
    with pytest.raises(
        ValueError, match=r"int16 array .*Values of other bands, or uint16, int16, float32, need Packing"
    ):
        list(pack_stream([(arrays.values("int16", 2), 0)], Packing(), batch_size=1))


def test_decode_returns_what_the_packing_asks_for(tmp_path: Path) -> None:
    images = sources("uint16", 1, 3)
    shard = shard_of(images, tmp_path / "a.tar")

    def decode(data: bytes) -> np.ndarray:
        index = data.index(b"\n") + 1
        height, width = next(a.shape[:2] for a in images.values() if arrays.npy(a) == data)
        return np.frombuffer(data[index:], np.uint16).reshape(height, width, 1).astype(np.float32) / 2

    found = pixels_of(PackedImageLoader(shard, packing_of("float32", 1), batch_size=2, image="npy", decode=decode))
    assert all(np.array_equal(found[k][: a.shape[0], : a.shape[1]], a / np.float32(2)) for k, a in images.items())


def test_a_transform_gets_values_and_keeps_their_type(tmp_path: Path) -> None:
    images = sources("int16", 2, 3)
    shard = shard_of(images, tmp_path / "a.tar")

    def loader(transform: Any) -> PackedImageLoader:
        return PackedImageLoader(shard, packing_of("int16", 2), batch_size=2, image="npy", transform=transform)

    found = pixels_of(loader(lambda image, rng: ~image))
    assert all(np.array_equal(found[k][: a.shape[0], : a.shape[1]], ~a) for k, a in images.items())
    with pytest.raises(ValueError, match=r"transform returned uint8 .* which is int16"):
        pixels_of(loader(lambda image, rng: image.astype(np.uint8)))


@pytest.mark.parametrize(
    ("dtype", "mean", "std"), [("uint16", 40000.0, 3.0), ("int16", -900.0, 20.0), ("float32", 1e4, 5.0)]
)
def test_the_model_normalises_in_units_of_the_pixels(dtype: Any, mean: float, std: float) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((5, 4 * 4 * 2)) * std + mean).astype(dtype)
    config = NaViTConfig(num_classes=0, patch_size=4, channels=2, width=12, mean=(mean, mean - std), std=(std, 2 * std))
    embed = NaViT(config).patch_embed
    shift, scale = torch.tensor([mean, mean - std] * 16).double(), torch.tensor([std, 2 * std] * 16).double()
    normalized = (torch.from_numpy(values.astype(np.float64)) - shift) / scale
    exact = normalized @ embed.weight.double().T + embed.bias.double()
    found = embed(torch.from_numpy(values))
    assert (found - exact).abs().max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert (embed(torch.from_numpy(values)).float() - exact).abs().max() < 0.05


def test_normalized_patches_are_in_units_of_the_pixels() -> None:
    images = list(sources("uint16", 2).values())
    (batch, *_) = pack_stream(((a, 0) for a in images), packing_of("uint16", 2), batch_size=1)
    found = batch.normalized_patches(mean=(30000, 1), std=(100, 2))
    expected = (batch.patches.float().unflatten(-1, (-1, 2)) - torch.tensor([30000, 1])) / torch.tensor([100, 2])
    assert torch.equal(found, expected.flatten(-2) * (batch.segment_ids > 0)[..., None])


def test_faint_contrast_is_learned_at_16_bits_and_not_at_8(tmp_path: Path) -> None:
    """The signal is 60 of 65,536 values, a quarter of a step of 8 bits."""
    rng = np.random.default_rng(0)
    images = {}
    for i in range(64):
        image = np.full((16, 16, 1), 32896.0) + rng.normal(0, 20, (16, 16, 1))
        image[:, 8 * (i % 2) : 8 * (i % 2) + 8] += 60
        images[f"{i:03}"] = np.rint(image).astype(np.uint16)
    shard = shard_of(images, tmp_path / "a.tar")

    def accuracy(**fields: Any) -> float:
        packing = Packing(**{"seq_len": 16, "patch_size": 8, "channels": 1, **fields})
        loader = PackedImageLoader(
            shard, packing, batch_size=2, image="npy", label="cls", shuffle=True, cache_dir=tmp_path
        )
        mean, std = pixel_stats(loader).normalization()
        torch.manual_seed(0)
        model = NaViT(
            NaViTConfig(num_classes=2, width=24, depth=1, patch_size=8, channels=1, max_grid=4, mean=mean, std=std)
        )
        train(model, loader, config=TrainConfig(epochs=8, lr=3e-3, device="cpu", precision="float32"))
        hits = [
            (model(batch).argmax(-1) == batch.labels)[batch.image_mask].float()
            for batch in PackedImageLoader(shard, packing, batch_size=2, image="npy", label="cls", cache_dir=tmp_path)
        ]
        return float(torch.cat(hits).mean())

    assert accuracy(dtype="uint16") > 0.95
    assert accuracy(dtype="uint8", convert="scale") < 0.8


def test_training_refuses_the_defaults_of_8_bits_for_other_units(tmp_path: Path) -> None:
    shard = shard_of(sources("int16", 1), tmp_path / "a.tar")
    loader = PackedImageLoader(shard, packing_of("int16", 1), batch_size=2, image="npy", label="cls")
    model = NaViT(NaViTConfig(num_classes=2, patch_size=8, channels=1))
    with pytest.raises(ValueError, match=r"images are int16.*patchnpack stats"):
        train(model, loader, config=TrainConfig(epochs=1, device="cpu"))


@pytest.mark.parametrize(("dtype", "channels"), [("uint16", 1), ("float32", 5), ("uint8", 2), ("int16", 3)])
def test_packs_of_values_are_drawn(dtype: Any, channels: int) -> None:
    images = list(sources(dtype, channels).values())
    (batch, *_) = pack_stream(((a, 0) for a in images), packing_of(dtype, channels), batch_size=1)
    before = batch.patches
    assert draw_packs(batch, width=640).width == 640
    assert "data:image/jpeg" in draw_html(batch)
    assert batch.patches is before


@pytest.mark.parametrize(("dtype", "channels"), [("uint16", 2), ("float32", 3), ("uint8", 5), ("int16", 1)])
def test_statistics_are_those_of_all_pixels(dtype: Any, channels: int, tmp_path: Path) -> None:
    images = sources(dtype, channels)
    shard = shard_of(images, tmp_path / "a.tar")
    loader = PackedImageLoader(shard, packing_of(dtype, channels), batch_size=1, image="npy")
    found = pixel_stats(loader)
    every = np.concatenate([a.reshape(-1, channels) for a in images.values()]).astype(np.float64)
    assert (found.images, found.bad, found.pixels) == (7, 0, len(every))
    assert np.allclose(found.mean, every.mean(0), rtol=1e-9, atol=1e-6)
    assert np.allclose(found.std, every.std(0), rtol=1e-9)
    assert np.array_equal(found.least, every.min(0))
    assert np.array_equal(found.most, every.max(0))
    expected = np.percentile(every, PERCENTILES, axis=0, method="inverted_cdf").T
    assert np.array_equal(found.percentiles, expected)
    assert pixel_stats(loader, images=3).images == 3


def test_a_saved_state_tells_another_depth(tmp_path: Path) -> None:
    shard = shard_of(sources("int16", 1), tmp_path / "a.tar")

    def state(**fields: Any) -> dict[str, Any]:
        loader = PackedImageLoader(
            shard, packing_of("int16", 1, **fields), batch_size=2, image="npy", cache_dir=tmp_path
        )
        return loader.state_dict()

    assert json.dumps(state()["fingerprint"]) != json.dumps(state(convert="exact")["fingerprint"])
    assert state(convert=np.nan_to_num)["fingerprint"]["packing.convert"] == "numpy.nan_to_num"


def test_pil_images_of_16_bits_and_floats_stream_as_values() -> None:
    grey, depth = arrays.values("uint16", 1), arrays.values("float32", 1)
    stream = pack_stream([(Image.fromarray(grey[..., 0]), 0)], packing_of("uint16", 1), batch_size=1)
    assert np.array_equal(next(iter(pixels_of(stream).values()))[:33, :41], grey)
    stream = pack_stream([(Image.fromarray(depth[..., 0]), 0)], packing_of("float32", 1), batch_size=1)
    assert np.array_equal(next(iter(pixels_of(stream).values()))[:33, :41], depth)


def test_bytes_bounds_and_native_resolution_of_values_hold(tmp_path: Path) -> None:
    packing = packing_of("float32", 13, resolution=Native())
    assert packing.token_bytes(8) == 8 * 8 * 13 * 4
    images = sources("float32", 13, 3)
    shard = shard_of(images, tmp_path / "a.tar")
    with pytest.raises(ValueError, match="pixels"):
        PackedImageLoader(shard, packing, batch_size=1, image="npy", errors=ErrorPolicy(max_pixels=4))
