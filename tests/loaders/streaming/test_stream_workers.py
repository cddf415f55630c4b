"""Streams in webdataset pipelines, in DataLoader workers and on several ranks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

from patchnpack.loaders import PackedImageLoader
from patchnpack.loaders.streaming.pack_stream import pack_stream
from patchnpack.packer import (
    ConstantDrop,
    Planner,
    Rows,
    ScheduledDrop,
)
from tests.loaders.streaming.streams import PACKING, Contents, decoding_threads, endless, flat


def pipeline(shards: Sequence[str], **options: Any) -> webdataset.WebDataset:
    stage = partial(pack_stream, packing=PACKING, batch_size=2, label="cls", **options)
    return webdataset.WebDataset(list(shards), shardshuffle=False, empty_check=False).compose(stage)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its shards open
def test_pack_stream_is_a_stage_of_a_webdataset_pipeline(drawn: Any, contents: Contents) -> None:
    expected = [contents(batch) for batch in PackedImageLoader(drawn.shards, PACKING, batch_size=2, label="cls")]
    dataset = pipeline(drawn.shards)
    for _ in range(2):  # each `iter` starts a new stream
        assert [contents(batch) for batch in dataset] == expected


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its shards open
def test_decoded_samples_of_a_pipeline_give_the_same_patches(make_drawn: Callable[..., Any]) -> None:
    drawn = make_drawn([12], kinds=("png",))
    plain = webdataset.WebDataset(drawn.shards, shardshuffle=False)
    stage = partial(pack_stream, packing=PACKING, batch_size=20, label="cls", extras=["txt"])
    (expected,) = plain.compose(stage)
    for how in ("pil", "rgb8"):
        (batch,) = plain.decode(how).compose(stage)
        assert torch.equal(batch.patches, expected.patches), how
        assert torch.equal(batch.labels, expected.labels)
        assert (batch.extras, batch.keys) == (expected.extras, expected.keys)
    (batch,) = plain.decode("pil").to_tuple("png", "cls").compose(partial(pack_stream, packing=PACKING, batch_size=20))
    assert torch.equal(batch.patches, expected.patches)
    assert torch.equal(batch.labels, expected.labels)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its shards open
def test_workers_of_a_dataloader_share_the_samples(drawn: Any) -> None:
    batches = list(DataLoader(pipeline(drawn.shards, extras=["txt"]), batch_size=None, num_workers=2))
    assert sorted(key for batch in batches for keys in batch.keys for key in keys) == sorted(drawn.keys)
    for batch in batches:
        for image, text in zip(batch.images(), itertools.chain(*batch.extras["txt"]), strict=True):
            height, width, _ = drawn.pixels[image.key].shape
            assert np.array_equal(image.pixels()[:height, :width], drawn.pixels[image.key])
            assert (image.label, text) == (drawn.labels[image.key], drawn.texts[image.key])


class Alike(torch.utils.data.IterableDataset[Any]):
    """Yields the same images in every worker, with the number of decoding threads there."""

    def __iter__(self) -> Iterator[Any]:
        packing = PACKING.replace(token_drop=ConstantDrop(0.5))
        for batch in pack_stream([(flat(32, 32), 0)] * 8, packing, batch_size=2):
            yield batch.coords, len(decoding_threads())


def test_draws_differ_between_workers_and_workers_start_no_threads() -> None:
    made = list(DataLoader(Alike(), batch_size=None, num_workers=2))
    assert [threads for _, threads in made] == [0] * len(made)
    first, second = made[0][0], made[1][0]
    assert first.shape == second.shape
    assert not torch.equal(first, second)
    alone = list(Alike())
    assert torch.equal(alone[0][0], first)  # a single process draws like worker 0


def test_ranks_draw_differently_and_count_towards_schedules_together(monkeypatch: pytest.MonkeyPatch) -> None:
    packing = PACKING.replace(
        token_drop=ScheduledDrop(drop=ConstantDrop(0.9), start=0, end=1, midpoint=40, tau=5), fill="none", lookahead=3
    )
    sizes = [(32, 24)] * 60
    for rank, world_size in ((0, 1), (1, 3)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        rows = Rows.of_sizes(*zip(*sizes, strict=True))
        rows = Rows(row=rows.row, row_id=rows.row_id | np.uint64(rank << 32), width=rows.width, height=rows.height)
        planner = Planner(packing, stream=rank, num_streams=world_size)
        expected = [
            part.pack(i).keep.tolist() for part in (planner.add(rows), planner.finish()) for i in range(len(part))
        ]
        batches = list(pack_stream([(flat(*size), 0) for size in sizes], packing, batch_size=1))
        assert [batch.lengths for batch in batches] == expected
        monkeypatch.undo()


def test_invalid_rank_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE in the environment must be whole numbers"):
        next(pack_stream(endless(), PACKING, batch_size=1))
