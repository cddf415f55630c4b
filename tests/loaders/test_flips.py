"""Flips of the plan, and the geometry of batches: from shards, streams and both stores of packed folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchnpack import (
    ConstantDrop,
    FitTokens,
    Native,
    PackedBatch,
    PackedImageLoader,
    Packing,
    RandomResizedCrop,
    SampleSide,
    Square,
    Views,
    pack_stream,
)
from patchnpack.loaders import Job
from patchnpack.loaders.imaging.readers.depth import turned
from tests.images import draw_image, encode_image, write_tar
from tests.loaders.conftest import contents
from tests.loaders.imaging import arrays

P = 8
BASE = Packing(seq_len=64, patch_size=P, max_images=7)
POLICIES = {
    "native": Native(),
    "native:crop": Native(edge="crop"),
    "native:resize": Native(edge="resize"),
    "native:20": Native(max_tokens=20),
    "fit": FitTokens(20),
    "fit:pad": FitTokens(20, edge="pad"),
    "naflex": FitTokens(40, upsample=True),
    "side": SampleSide(low=20, high=60),
    "crop": RandomResizedCrop(),
    "crop:12": RandomResizedCrop(max_tokens=12),
    "square": Square(32),
}
NATIVE = ("native", "native:crop", "crop")  # where pixels are not resized
INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # EXIF orientations


def coordinates(width: int, height: int) -> np.ndarray:
    """An image whose values are the centres of its own pixels, float32 (height, width, 2)."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([x, y], -1).astype(np.float32)


def coordinate_images(n: int = 14) -> dict[str, np.ndarray]:
    sizes = np.random.default_rng(4).integers(19, 70, (n, 2)).tolist()
    return {f"{i:03}": coordinates(width, height) for i, (width, height) in enumerate(sizes)}


def batches_of(way: str, images: dict[str, np.ndarray], packing: Packing, folder: Path) -> list[PackedBatch]:
    """The batches of one epoch, by one of the ways that images reach them."""
    if way == "stream":
        samples = ({"__key__": key, "npy": arrays.npy(array)} for key, array in images.items())
        return list(pack_stream(samples, packing, batch_size=2, image="npy"))
    shard = write_tar(folder / "a.tar", [(f"{key}.npy", arrays.npy(array)) for key, array in images.items()])
    if way == "shards":
        return list(PackedImageLoader(shard, packing, batch_size=2, image="npy", cache_dir=folder))
    packed = str(folder / "packed")
    Job(source=shard, out=packed, packing=packing, store=way, image="npy", epochs=1).run()  # type: ignore[arg-type]
    return list(PackedImageLoader(packed, batch_size=2))


def shown_pixels(batch: PackedBatch) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each image its number, the centres of the pixels of its tokens that show the source, and their values."""
    P = batch.patch_size
    inner = np.stack(np.meshgrid(np.arange(P), np.arange(P)), -1) + 0.5
    for i, image in enumerate(batch.images()):
        assert image.geometry is not None
        centres = (image.coords.numpy()[:, None, None] * P + inner).reshape(-1, 2)
        values = image.patches.numpy().reshape(len(centres), -1)
        shown = (centres < image.geometry.extent).all(1)
        assert not values[~shown].any()
        yield i, centres[shown], values[shown]


def check_coordinates(batches: list[PackedBatch], images: dict[str, np.ndarray], *, native: bool) -> None:
    seen: set[str] = set()
    for batch in batches:
        keys = [key for keys in batch.keys for key in keys]
        for i, centres, values in shown_pixels(batch):
            geometry = batch.geometries()[i]
            assert geometry.source == images[keys[i]].shape[1::-1]
            found = batch.to_source(centres, i)
            scale = np.maximum(1, np.array(geometry.box[2:]) / geometry.size)
            assert (np.abs(found - values) <= (1e-3 if native else scale)).all()
            assert np.abs(batch.to_image(values, i) - centres).max() <= (
                1e-3 if native else 1.5 * (1 / scale).max() + 1
            )
            seen.add(keys[i])
    assert seen == images.keys()


@pytest.mark.parametrize("policy", POLICIES)
def test_coordinates_come_back_at_each_kept_token(policy: str, tmp_path: Path) -> None:
    packing = BASE.replace(resolution=POLICIES[policy], token_drop=ConstantDrop(0.3), channels=2, dtype="float32")
    images = coordinate_images()
    batches = batches_of("shards", images, packing.replace(flip=0.5, vflip=0.5), tmp_path)
    check_coordinates(batches, images, native=policy in NATIVE)
    kinds = {tuple(flip) for batch in batches for flip in batch.flipped[batch.image_mask].tolist()}
    assert len(kinds) == 4
    assert not any(batch.flipped[~batch.image_mask].any() for batch in batches)


@pytest.mark.parametrize("way", ["stream", "images", "patches"])
@pytest.mark.parametrize("policy", ["native:crop", "fit:pad", "crop"])
def test_coordinates_come_back_from_streams_and_both_stores(way: str, policy: str, tmp_path: Path) -> None:
    packing = BASE.replace(resolution=POLICIES[policy], flip=0.5, vflip=0.5, channels=2, dtype="float32")
    images = coordinate_images()
    batches = batches_of(way, images, packing, tmp_path)
    check_coordinates(batches, images, native=policy in NATIVE)
    assert any(batch.flipped.any() for batch in batches)


@pytest.mark.parametrize("way", ["shards", "stream", "images", "patches"])
def test_coordinates_come_back_from_each_view(way: str, tmp_path: Path) -> None:
    views = Views((2, RandomResizedCrop(max_tokens=16)), (1, RandomResizedCrop(scale=(0.05, 0.2))))
    packing = BASE.replace(resolution=Native(), views=views, flip=0.5, channels=2, dtype="float32")
    images = coordinate_images()
    check_coordinates(batches_of(way, images, packing, tmp_path), images, native=False)


def test_maps_of_tokens_of_one_pixel_are_the_image(tmp_path: Path) -> None:
    image = {"image": coordinates(33, 21)}
    packing = BASE.replace(patch_size=1, seq_len=1024, flip=1.0, channels=2, dtype="float32")
    (batch,) = batches_of("stream", image, packing, tmp_path)
    found = batch.maps(batch.patches.flatten(0, 1)[batch.token_index])
    assert torch.equal(found[0], torch.from_numpy(image["image"]))


# Mirrored pixels


def jpegs(folder: Path, n: int = 16) -> str:
    """A shard of JPEGs of all orientations."""
    members = []
    sizes = np.random.default_rng(2).integers(19, 70, (n, 2)).tolist()
    for i, (width, height) in enumerate(sizes):
        exif = Image.Exif()
        exif[0x0112] = i % 8 + 1
        members.append((f"{i:03}.jpg", encode_image(draw_image(width, height, i), "JPEG", quality=90, exif=exif)))
    return write_tar(folder / "jpegs.tar", members)


def visible(batches: list[PackedBatch]) -> dict[str, np.ndarray]:
    found = {}
    for batch in batches:
        for image in batch.images():
            assert image.geometry is not None
            width, height = image.geometry.extent
            found[image.key] = image.pixels()[:height, :width]
    return found


@pytest.mark.parametrize("fill", ["undrop", "trim", "rescale"])
@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "native:crop"])
def test_a_mirrored_image_is_the_mirror_of_the_unmirrored_one(policy: str, fill: Any, tmp_path: Path) -> None:
    if policy == "square" and fill == "rescale":
        pytest.skip("sizes of squares are fixed")
    shard, packing = jpegs(tmp_path), BASE.replace(resolution=POLICIES[policy], fill=fill, max_scale=0.2, max_trim=0.01)

    def pixels(**flips: float) -> dict[str, np.ndarray]:
        return visible(list(PackedImageLoader(shard, packing.replace(**flips), batch_size=2, cache_dir=tmp_path)))

    plain = pixels()
    assert len(plain) == 16
    for flips, step in (
        ({"flip": 1.0}, (1, -1)),
        ({"vflip": 1.0}, (-1, 1)),
        ({"flip": 1.0, "vflip": 1.0}, (-1, -1)),
    ):
        mirrored = pixels(**flips)
        for key, image in plain.items():
            assert np.array_equal(mirrored[key], image[:: step[0], :: step[1]]), key


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("select", ["random", "detail"])
@pytest.mark.parametrize("edge", ["pad", "crop"])
def test_mirroring_is_as_good_as_a_source_that_was_mirrored(edge: Any, select: Any, dtype: Any, tmp_path: Path) -> None:
    channels = 3 if dtype == "uint8" else 2
    sizes = np.random.default_rng(3).integers(19, 70, (10, 2)).tolist()
    sources = {f"{i}": arrays.values(dtype, channels, h, w, seed=i) for i, (w, h) in enumerate(sizes)}
    mirrored = {key: np.ascontiguousarray(array[:, ::-1]) for key, array in sources.items()}
    packing = BASE.replace(resolution=Native(edge=edge), token_drop=ConstantDrop(0.4), select=select)
    packing = packing.replace(channels=channels, dtype=dtype)
    flipped = batches_of("stream", sources, packing.replace(flip=1.0), tmp_path)
    plain = batches_of("stream", mirrored, packing, tmp_path)
    for one, other in zip(flipped, plain, strict=True):
        assert torch.equal(one.patches, other.patches)
        assert torch.equal(one.coords, other.coords)
        assert one.flipped[one.image_mask].tolist() == [[True, False]] * one.num_images


@pytest.mark.parametrize("orientation", range(1, 9))
def test_coordinates_come_back_from_each_orientation(orientation: int, tmp_path: Path) -> None:
    upright = np.zeros((41, 58, 3), np.uint8)
    upright[..., :2] = coordinates(58, 41)  # rounded down: the numbers of columns and rows
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(turned(upright, INVERSE[orientation]))
    shard = write_tar(tmp_path / "a.tar", [("a.png", encode_image(stored, "PNG", exif=exif))])
    packing = BASE.replace(resolution=RandomResizedCrop(scale=(0.3, 0.6)), flip=0.5, vflip=0.5)
    for seed in range(4):
        (batch,) = PackedImageLoader(shard, packing, batch_size=1, seed=seed, cache_dir=tmp_path)
        ((i, centres, values),) = shown_pixels(batch)
        assert (batch.to_source(centres, i) == values[:, :2] + 0.5).all()


def test_a_transform_gets_the_mirrored_image(tmp_path: Path) -> None:
    source = arrays.values("uint8", 3, 24, 40)
    shard, seen = write_tar(tmp_path / "a.tar", [("a.png", encode_image(source, "PNG"))]), []

    def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        assert image.flags.c_contiguous
        seen.append(image.copy())
        return 255 - image

    packing = BASE.replace(flip=1.0)
    (batch,) = PackedImageLoader(shard, packing, batch_size=1, transform=transform, cache_dir=tmp_path)
    assert (seen[-1] == source[:, ::-1]).all()
    assert (next(batch.images()).pixels() == 255 - source[:, ::-1]).all()


# Which images are mirrored


def flips_by_key(batches: list[PackedBatch]) -> dict[str, tuple[bool, bool]]:
    return {
        key: tuple(batch.flipped[b, j].tolist())
        for batch in batches
        for b, keys in enumerate(batch.keys)
        for j, key in enumerate(keys)
    }


def test_flips_are_the_same_for_any_number_of_threads_and_ranks_and_after_a_resume(tmp_path: Path) -> None:
    shard, packing = jpegs(tmp_path, 40), BASE.replace(flip=0.5, vflip=0.3, resolution=RandomResizedCrop())

    def loader(**options: Any) -> PackedImageLoader:
        return PackedImageLoader(shard, packing, **{"batch_size": 2, "seed": 3, "cache_dir": tmp_path, **options})

    expected = [contents(batch) for batch in loader(num_threads=1)]
    assert [contents(batch) for batch in loader(num_threads=4)] == expected
    first = loader(num_threads=3)
    state = None
    for batch in first:
        state = first.state_dict(after=batch)
        break
    assert state is not None
    resumed = loader()
    resumed.load_state_dict(state)
    assert [contents(batch) for batch in resumed] == expected[1:]
    alone = flips_by_key(list(loader()))
    ranks = [flips_by_key(list(loader(batch_size=1, rank=rank, world_size=2))) for rank in range(2)]
    assert ranks[0] | ranks[1] == alone
    assert len(set(alone.values())) == 4


def test_each_epoch_and_seed_draws_other_flips_also_from_stores(tmp_path: Path) -> None:
    shard, packing = jpegs(tmp_path, 40), BASE.replace(flip=0.5)

    def epochs(source: str, **options: Any) -> list[dict[str, tuple[bool, bool]]]:
        loader = PackedImageLoader(source, batch_size=2, cache_dir=tmp_path, **options)
        return [flips_by_key(list(loader)) for _ in range(3)]

    planned = epochs(shard, packing=packing, seed=3)
    assert planned[0] != planned[1]
    assert epochs(shard, packing=packing, seed=4)[0] != planned[0]
    for store in ("images", "patches"):
        folder = str(tmp_path / store)
        Job(source=shard, out=folder, packing=packing, store=store, epochs=2, seed=3).run()
        assert epochs(folder) == [planned[0], planned[1], planned[0]]


def test_images_beside_a_bad_one_keep_their_geometry(tmp_path: Path) -> None:
    images = coordinate_images(20)
    packing = BASE.replace(flip=0.5, vflip=0.5, resolution=RandomResizedCrop(), channels=2, dtype="float32")
    whole = {key: arrays.npy(array) for key, array in images.items()}
    bad = ["004", "005", "011", "019"]
    broken = whole | {key: whole[key][:-40] for key in bad}
    found = []
    for name, files in (("whole", whole), ("broken", broken)):
        shard = write_tar(tmp_path / f"{name}.tar", [(f"{key}.npy", data) for key, data in files.items()])
        found.append(list(PackedImageLoader(shard, packing, batch_size=2, image="npy", num_threads=1)))
    geometries = [{image.key: image.geometry for batch in batches for image in batch.images()} for batches in found]
    assert geometries[1] == {key: geometry for key, geometry in geometries[0].items() if key not in bad}
    check_coordinates(found[1], {key: image for key, image in images.items() if key not in bad}, native=True)
    for batch in found[1]:
        for column in (batch.boxes, batch.sizes, batch.flipped):
            assert not column[~batch.image_mask].any()


def test_a_state_of_other_flips_is_refused(tmp_path: Path) -> None:
    shard = jpegs(tmp_path)
    loader = PackedImageLoader(shard, BASE, batch_size=1, cache_dir=tmp_path)
    state = loader.state_dict()
    other = PackedImageLoader(shard, BASE.replace(flip=0.5), batch_size=1, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"packing\.flip = 0\.0, this loader has 0\.5"):
        other.load_state_dict(state)
