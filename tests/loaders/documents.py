"""Documents of several pages, which tests of samples load: tars of them, and checks of batches made of them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patchnpack.loaders import Index, scan
from patchnpack.loaders.index.sample_table import SampleTable
from patchnpack.packer import PackedBatch, Packing
from tests.images import draw_image, encode_image, join_patches, read_tar, rewrite_tar, write_tar

PACKING = Packing(seq_len=256, patch_size=8, max_images=24, algorithm="largest_fit")


class Documents:
    """Documents of 1 to 9 pages of mixed sizes in tars: their shards, and the pixels and label of each page.

    Each page is an image of its own, with the key "d007_2" for page 2 of document 7; with `members`, the pages of a
    document, its label and its text are members of one sample of the tar.
    """

    def __init__(
        self, folder: Path, counts: Sequence[int], *, seed: int = 0, low: int = 8, high: int = 40, members: bool = False
    ):
        self.shards: list[str] = []
        self.pages: dict[str, list[np.ndarray]] = {}
        self.labels: dict[str, int] = {}
        rng = np.random.default_rng(seed)
        for s, count in enumerate(counts):
            found: list[tuple[str, bytes]] = []
            for _ in range(count):
                name = f"d{len(self.pages):03d}"
                self.pages[name], self.labels[name] = [], int(rng.integers(10))
                for page in range(1 + len(self.labels) * 7 % 9):
                    image = draw_image(int(rng.integers(low, high)), int(rng.integers(low, high)), seed=1000 * s + page)
                    kind = ("png", "jpg")[page % 2]
                    data = encode_image(image, "PNG" if kind == "png" else "JPEG")
                    self.pages[name].append(np.asarray(Image.open(io.BytesIO(data))))
                    if members:
                        found.append((f"{name}.{page}.{kind}", data))
                        continue
                    found += [
                        (f"{name}_{page}.{kind}", data),
                        (f"{name}_{page}.cls", str(self.labels[name]).encode()),
                        (f"{name}_{page}.txt", f"page {page} of {name}".encode()),
                    ]
                if members:
                    found += [
                        (f"{name}.cls", str(self.labels[name]).encode()),
                        (f"{name}.txt", f"the text of {name}".encode()),
                    ]
            self.shards.append(write_tar(folder / f"documents-{s}.tar", found))

    @property
    def num_images(self) -> int:
        return sum(map(len, self.pages.values()))

    def index(self) -> Index:
        """The index in which the pages of a document are a sample."""
        return grouped(scan(self.shards))

    def damage(self, pages: Iterable[tuple[str, int]], *, header: bool = False) -> None:
        """Cut the last 40 bytes off some pages, or overwrite them so that their headers cannot be read."""
        change: dict[str, bytes | None] = {}
        for shard in self.shards:
            for name, data in read_tar(shard):
                match = re.fullmatch(r"(d\d+)_(\d+)\.(png|jpg)", name)
                if match is not None and (match[1], int(match[2])) in set(pages):
                    change[name] = b"no image" if header else data[:-40]
        for shard in self.shards:
            rewrite_tar(shard, change)


def grouped(index: Index) -> Index:
    """The index with a sample for neighbouring rows of one shard whose keys agree up to the last "_"."""
    names = [(int(index.shard_of(row)), key.rpartition("_")[0]) for row, key in enumerate(index.keys)]
    counts = [len(list(group)) for _, group in groupby(names)]
    zeros = np.zeros(len(index), np.int32)
    starts = np.array([0, *accumulate(counts)], np.int64)
    return replace(index, samples=SampleTable(rule="key:(.+)_.*", starts=starts, page=zeros, frames=zeros + 1))


def samples_of(batches: Iterable[PackedBatch]) -> list[tuple[str, list[int]]]:
    """The name of each sample of the batches, in order, with the frames of its images; checks that they are whole."""
    found: list[tuple[str, list[int]]] = []
    for batch in batches:
        for b, keys in enumerate(batch.keys):
            numbers, frames = batch.samples[b, : len(keys)].tolist(), batch.frames[b, : len(keys)].tolist()
            assert not batch.samples[b, len(keys) :].any()
            assert not batch.frames[b, len(keys) :].any()
            assert sorted(set(numbers)) == list(range(1, max(numbers, default=0) + 1))
            for _, group in groupby(zip(numbers, keys, frames, strict=True), lambda image: image[0]):
                images = list(group)
                (name,) = {key.rpartition("_")[0] or key for _, key, _ in images}
                found.append((name, [frame for _, _, frame in images]))
            assert numbers == sorted(numbers)
    return found


def check_documents(batches: Iterable[PackedBatch], documents: Documents) -> None:
    """Assert that each image of the batches has the pixels and the label of its page."""
    for batch in batches:
        assert not batch.patches[batch.segment_ids == 0].any()
        images = iter(batch.images())
        for b, keys in enumerate(batch.keys):
            for j, key in enumerate(keys):
                name, _, page = key.rpartition("_")
                pixels = documents.pages[name][int(page)]
                height, width, _ = pixels.shape
                image = next(images)
                assert image.label == documents.labels[name]
                assert batch.image_sizes[b, j].tolist() == [width, height]
                canvas = join_patches(image.patches.numpy(), image.coords.numpy(), image.grid, batch.patch_size)
                assert np.array_equal(canvas[:height, :width], pixels), key
                if "txt" in batch.extras:
                    assert batch.extras["txt"][b][j] == f"page {page} of {name}"


def conserved(stats: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The totals of all ranks: samples and images, used, bad and left out."""
    names = ("samples", "bad_samples", "images", "bad_images", "left_out")
    total = {name: sum(rank[name] for rank in stats) for name in names}
    return total | {"skipped": sum(sum(rank["skipped"].values()) for rank in stats)}
