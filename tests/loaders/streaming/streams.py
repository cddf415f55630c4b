"""Samples, packings and checks that the tests of streams share."""

from __future__ import annotations

import itertools
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from patchnpack.packer import (
    PackedBatch,
    Packing,
)

PACKING = Packing(seq_len=64, patch_size=8, max_images=7, algorithm="subset_sum")

Contents = Callable[[PackedBatch], tuple[object, ...]]
Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]


def samples_of(shards: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the samples of shards as webdataset does."""
    for shard in shards:
        sample: dict[str, Any] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if sample and sample["__key__"] != key:
                    yield sample
                    sample = {}
                file = tar.extractfile(member)
                assert file is not None
                sample |= {"__key__": key, "__url__": shard, extension: file.read()}
        if sample:
            yield sample


def flat(width: int, height: int, value: int = 0) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def rows_in(batches: Iterable[PackedBatch]) -> list[int]:
    return [row for batch in batches for row in batch.rows[batch.image_mask].tolist()]


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("patchnpack-decode")]


def break_data(drawn: Any, headers: Sequence[str], bodies: Sequence[str]) -> None:
    """Give some images an unreadable header and truncate others after their headers."""
    change = {}
    for sample in samples_of(drawn.shards):
        kind = "jpg" if "jpg" in sample else "png"
        if sample["__key__"] in headers:
            change[f"{sample['__key__']}.{kind}"] = b"no image"
        if sample["__key__"] in bodies:
            change[f"{sample['__key__']}.{kind}"] = sample[kind][:-40]
    drawn.rewrite(change)


def endless() -> Iterator[tuple[np.ndarray, int]]:
    return ((flat(32, 32), i) for i in itertools.count())
