"""Targets follow their images: masks that hold their own coordinates, and boxes, through all that a plan does.

Images come from shards, folders, tables and streams, and through both kinds of packed folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack import (
    Boxes,
    ConstantDrop,
    DropToTokens,
    FitTokens,
    Keypoints,
    Map,
    Mask,
    Native,
    NoDrop,
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
from tests.loaders.targets.carried import Sample, folder_of, table_of, tar_of
from tests.loaders.targets.samples import objects_of, tensor_of

FILL = 65535
TARGETS: dict[str, Any] = {
    "x": Mask("x.png", dtype="uint16", fill=FILL),
    "y": Mask("y.png", dtype="uint16", fill=FILL),
    "map": Map("x.png", fill=-1.0),
    "boxes": Boxes("json:boxes", labels="json:classes"),
    "points": Keypoints("json:points"),
}
OF_TABLE: dict[str, Any] = {
    "x": Mask("x", dtype="uint16", fill=FILL),
    "y": Mask("y", dtype="uint16", fill=FILL),
    "map": Map("x", fill=-1.0),
    "boxes": Boxes("boxes", labels="classes"),
    "points": Keypoints("points"),
}
SIZES: dict[str, dict[str, Any]] = {
    "pad": {"resolution": Native(edge="pad")},
    "crop": {"resolution": Native(edge="crop")},
    "resize": {"resolution": Native(edge="resize")},
    "fit": {"resolution": FitTokens(12)},
    "fit up": {"resolution": FitTokens(60, upsample=True)},
    "side": {"resolution": SampleSide(low=16, high=60)},
    "random crop": {"resolution": RandomResizedCrop(scale=(0.1, 1.0), max_tokens=30)},
    "square": {"resolution": Square(40)},
    "views": {"views": Views((1, Native(max_tokens=16)), (2, RandomResizedCrop(scale=(0.2, 0.9), max_tokens=16)))},
    "rescale": {"resolution": Native(), "fill": "rescale"},
}


@st.composite
def _samples(draw: st.DrawFn, least: int = 1) -> list[Sample]:
    samples = []
    for i in range(draw(st.integers(least, 4))):
        width, height = draw(st.integers(8, 90)), draw(st.integers(8, 90))
        corners = draw(st.lists(st.tuples(*[st.integers(-6, 38)] * 4), max_size=3))
        boxes = np.array(corners, np.float64).reshape(-1, 2, 2) * (width, height) / 32
        boxes = np.concatenate([boxes.min(1), boxes.max(1)], axis=1)
        samples.append(Sample(f"k{i}", width, height, draw(st.integers(1, 8)), boxes))
    return samples


_PACKINGS = st.fixed_dictionaries(
    {
        "flip": st.sampled_from([0.0, 0.5, 1.0]),
        "vflip": st.sampled_from([0.0, 0.5]),
        "token_drop": st.sampled_from([NoDrop(), ConstantDrop(0.4), DropToTokens(9)]),
        "select": st.sampled_from(["random", "detail"]),
        "patch_size": st.sampled_from([5, 8]),
    }
)


def to_source(batch: PackedBatch, b: int, j: int, points: np.ndarray) -> np.ndarray:
    """Points (n, 2) of a packed image in its upright source, from the fields of the batch alone."""
    left, top, across, down = batch.boxes[b, j].tolist()
    size = batch.sizes[b, j].numpy()
    cut = np.maximum(0, size - batch.grids[b, j].numpy() * batch.patch_size) // 2
    sized = points + cut
    sized = np.where(batch.flipped[b, j].numpy(), size - sized, sized)
    source: np.ndarray = sized * (across, down) / size + (left, top)
    return source


def check_dense(batch: PackedBatch, samples: dict[str, Sample]) -> int:
    """Check that each pixel of the masks holds the coordinates of its source; return how many pixels there were."""
    P, seen = batch.patch_size, 0
    down, across = np.divmod(np.arange(P * P), P)
    for b, j in batch.image_mask.nonzero().tolist():
        slots = batch.segment_ids[b] == j + 1
        corner = batch.coords[b, slots].numpy()[:, None] * P + np.stack([across, down], axis=1)
        source = to_source(batch, b, j, (corner + 0.5).reshape(-1, 2)).reshape(corner.shape)
        sample = samples[batch.keys[b][j]]
        grid = batch.grids[b, j].numpy() * P
        extent = np.minimum(grid, batch.sizes[b, j].numpy())
        inside = (corner < extent).all(-1)
        x, y, values = (tensor_of(batch, name)[b, slots].numpy() for name in ("x", "y", "map"))
        assert (x[~inside] == FILL).all()
        assert (values[~inside] == -1).all()
        found = np.stack([x, y], axis=-1)[inside] + 0.5
        assert np.abs(found - source[inside]).max(initial=0) <= 0.5 + 1e-6
        assert (found <= (sample.width, sample.height)).all()
        seen += int(inside.sum())
    padding = batch.segment_ids == 0
    assert (tensor_of(batch, "x")[padding].numpy() == FILL).all()
    return seen


def check_boxes(batch: PackedBatch, samples: dict[str, Sample]) -> None:
    """Check the boxes of all images against those of their upright sources."""
    boxes, points = objects_of(batch, "boxes"), objects_of(batch, "points")
    for image, (b, j) in enumerate(batch.image_mask.nonzero().tolist()):
        sample, found = samples[batch.keys[b][j]], boxes.of(image)
        extent = np.minimum(batch.sizes[b, j].numpy(), batch.grids[b, j].numpy() * batch.patch_size)
        corners = to_source(batch, b, j, np.array([[0, 0], extent]))
        seen = np.concatenate([corners.min(0), corners.max(0)])  # the part of the source that is seen
        clipped = np.concatenate(
            [np.maximum(sample.boxes[:, :2], seen[:2]), np.minimum(sample.boxes[:, 2:], seen[2:])], axis=1
        )
        stays = (clipped[:, 2:] > clipped[:, :2] + 1e-6).all(1)
        scale = batch.sizes[b, j].numpy() / batch.boxes[b, j, 2:].numpy()
        assert found.labels.tolist() == found.index.tolist() == np.flatnonzero(stays).tolist()
        assert int(boxes.counts[b, j]) == len(found)
        assert found.boxes is not None
        back = to_source(batch, b, j, found.boxes.numpy().reshape(-1, 2).astype(np.float64)).reshape(-1, 2, 2)
        back = np.concatenate([back.min(1), back.max(1)], axis=1)
        assert (np.abs(back - clipped[stays]) * np.tile(scale, 2) <= 0.01).all()  # far below half a pixel
        own = points.of(image)
        assert own.points is not None
        for place, at in zip(own.index.tolist(), own.points.numpy().reshape(-1, 2, 2), strict=True):
            where = to_source(batch, b, j, at.astype(np.float64))
            assert (np.abs(np.sort(where, 0) - sample.boxes[place].reshape(2, 2)) * scale <= 0.01).all()


def members_of(samples: list[Sample]) -> list[Mapping[str, Any]]:
    return [{"__key__": sample.key, **sample.members()} for sample in samples]


def check(batches: Iterable[PackedBatch], samples: list[Sample]) -> None:
    by_key, seen = {sample.key: sample for sample in samples}, 0
    by_key |= {f"{key}.png": sample for key, sample in by_key.items()}  # as the images of a table are called
    for batch in batches:
        seen += check_dense(batch, by_key)
        check_boxes(batch, by_key)
    assert seen


def check_stores(root: Path, samples: list[Sample], stores: dict[str, str | None], **job: Any) -> None:
    """Pack the samples, which lie in `job["source"]`, into stores of these compressions, and check their batches."""
    for store, compression in stores.items():
        out = str(root / store)
        assert Job(out=out, store=store, compression=compression, epochs=1, shuffle=True, **job).run()  # type: ignore[arg-type]
        loader = PackedImageLoader(out, batch_size=2, num_threads=1)
        check(loader, samples)
        assert loader.stats()["bad_images"] == 0


@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=12, deadline=None)
@given(samples=_samples(), packing=_PACKINGS, seed=st.integers(0, 99))
def test_targets_of_shards_hold_the_places_of_their_sources(
    size: str, samples: list[Sample], packing: dict[str, Any], seed: int
) -> None:
    with TemporaryDirectory() as folder:
        tar = tar_of(Path(folder) / "a.tar", members_of(samples))
        loader = PackedImageLoader(
            tar,
            Packing(seq_len=300, **{**SIZES[size], **packing}),
            batch_size=2,
            shuffle=True,
            seed=seed,
            image="png",
            targets=TARGETS,
            num_threads=1,
        )
        check(loader, samples)
        assert loader.stats()["bad_images"] == 0


@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=5, deadline=None)
@given(samples=_samples(3), packing=_PACKINGS, seed=st.integers(0, 99), compression=st.sampled_from([None, "lz4"]))
def test_targets_of_both_stores_hold_the_places_of_their_sources(
    size: str, samples: list[Sample], packing: dict[str, Any], seed: int, compression: str | None
) -> None:
    per_pack = 3 if size == "views" else 2  # so few that there are several packs
    packs = Packing(seq_len=300, max_images=per_pack, **{**SIZES[size], **packing})
    with TemporaryDirectory() as folder:
        job: dict[str, Any] = {"source": tar_of(Path(folder) / "a.tar", members_of(samples)), "image": "png"}
        job |= {"packing": packs, "targets": TARGETS, "seed": seed}
        check_stores(Path(folder), samples, {"images": None, "patches": compression}, **job)


@pytest.mark.parametrize("kind", ["folder", "table"])
@settings(max_examples=12, deadline=None)
@given(samples=_samples(), size=st.sampled_from(list(SIZES)), packing=_PACKINGS, seed=st.integers(0, 99))
def test_targets_of_files_hold_the_places_of_their_sources(
    kind: str, samples: list[Sample], size: str, packing: dict[str, Any], seed: int
) -> None:
    packs = Packing(seq_len=300, **{**SIZES[size], **packing})
    with TemporaryDirectory() as folder:
        root, is_table = Path(folder), kind == "table"
        source = (table_of if is_table else folder_of)(root / "files", members_of(samples))
        options: dict[str, Any] = {"targets": OF_TABLE if is_table else TARGETS, "seed": seed}
        options |= {} if is_table else {"image": "png"}
        check(PackedImageLoader(source, packs, batch_size=2, num_threads=1, **options), samples)
        # An image store does not keep the files that a table names.
        stores: dict[str, str | None] = {"patches": None} if is_table else {"images": None, "patches": None}
        check_stores(root, samples, stores, source=source, packing=packs, **options)


@pytest.mark.parametrize("size", ["crop", "views", "random crop", "pad"])
@settings(max_examples=12, deadline=None)
@given(samples=_samples(), packing=_PACKINGS, seed=st.integers(0, 99))
def test_targets_of_streams_hold_the_places_of_their_sources(
    size: str, samples: list[Sample], packing: dict[str, Any], seed: int
) -> None:
    packs = Packing(seq_len=300, **{**SIZES[size], **packing})
    stream = pack_stream(
        members_of(samples), packs, batch_size=2, seed=seed, image="png", targets=TARGETS, num_threads=0
    )
    check(stream, samples)
    assert stream.stats()["bad_images"] == 0
