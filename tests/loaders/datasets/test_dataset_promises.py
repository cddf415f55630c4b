"""The promises of the loader hold for data sets: each kind gives the batches that its images have as shards."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from patchnpack.loaders import ErrorPolicy, PackedImageLoader, report_of
from patchnpack.packer import BetaDrop, FitTokens, PackedBatch, PatchSizes, RandomResizedCrop
from tests.loaders.datasets.collections_of_images import Items, Photos
from tests.loaders.loading import PACKING, keys_of, noisy

KINDS = ("hugging face", "folder", "pairs")
RANDOM = PACKING.replace(
    resolution=RandomResizedCrop(scale=(0.3, 1.0), max_tokens=30), token_drop=BetaDrop(0.3, 0.6), patch_size=8
)


@pytest.fixture(params=KINDS)
def loader(request: pytest.FixtureRequest, make: Callable[[str], Any]) -> Callable[..., PackedImageLoader]:
    """Makes loaders of one kind of data set."""

    def of(packing: Any = PACKING, **options: Any) -> PackedImageLoader:
        label = "label" if request.param == "hugging face" else None
        return PackedImageLoader(make(request.param), packing, **{"batch_size": 2, "label": label} | options)

    return of


def check(batch: PackedBatch, photos: Photos) -> None:
    """Assert that each image of a batch has the pixels and the label of its key."""
    for image in batch.images():
        pixels = photos.pixels(int(image.key))
        canvas = image.pixels()
        assert np.array_equal(canvas[: pixels.shape[0], : pixels.shape[1]], pixels), image.key
        assert image.label == photos.labels[int(image.key)]


def test_each_image_comes_once_an_epoch_with_its_pixels_label_and_key(loader: Any, photos: Photos) -> None:
    made = loader(shuffle=True)
    for _ in range(2):
        batches = list(made)
        for batch in batches:
            check(batch, photos)
        assert sorted(map(int, keys_of(batches))) == list(range(len(photos)))
    assert made.stats()["images"] == 2 * len(photos)


@pytest.mark.parametrize("packing", [PACKING, RANDOM, PACKING.replace(patch_size=PatchSizes((8, 12)))])
def test_batches_are_the_same_for_any_number_of_threads_and_prefetch(loader: Any, contents: Any, packing: Any) -> None:
    options = {"shuffle": True, "transform": noisy, "packing": packing}
    expected = [contents(batch) for batch in loader(num_threads=1, **options)]
    assert [contents(batch) for batch in loader(num_threads=4, prefetch=5, **options)] == expected


def test_ranks_together_yield_the_packs_of_one(loader: Any) -> None:
    alone = [pack for batch in loader(shuffle=True, block=12, batch_size=12) for pack in batch.keys]
    for ranks in (1, 2, 3):
        made = [loader(shuffle=True, block=12, rank=rank, world_size=ranks) for rank in range(ranks)]
        epochs = [list(one) for one in made]
        assert len(set(map(len, epochs))) == 1
        packs = [pack for step in zip(*epochs, strict=True) for b in range(2) for pack in (one.keys[b] for one in step)]
        assert packs[: len(alone)] == alone[: len(packs)]
        assert not any(packs[len(alone) :])
        assert sum(one.stats()["images"] for one in made) == len({key for pack in packs for key in pack}) == 40


def test_resumes_at_each_of_ten_steps_and_on_other_ranks(loader: Any, contents: Any) -> None:
    made = loader(shuffle=True, batch_size=1, packing=RANDOM)
    batches, states = [], []
    for _ in range(2):
        for batch in made:
            batches.append(contents(batch))
            states.append(json.loads(json.dumps(made.state_dict())))
    steps = len(batches)
    assert steps >= 10
    for step in range(0, steps - 1, max(1, steps // 10)):
        again = loader(shuffle=True, batch_size=1, packing=RANDOM, num_threads=3)
        again.load_state_dict(states[step])
        rest = [contents(batch) for batch in again]
        assert rest == batches[step + 1 : step + 1 + len(rest)]
        assert rest
    used = [key for _, keys, *_ in batches[:3] for pack in keys for key in pack]
    left: list[str] = []
    for rank in range(3):
        one = loader(shuffle=True, batch_size=2, packing=RANDOM, rank=rank, world_size=3)
        one.load_state_dict(states[2])
        left += keys_of(list(one))
    assert sorted(map(int, used + left)) == list(range(40))


def test_state_of_other_data_or_another_order_is_refused(loader: Any, photos: Photos) -> None:
    state = loader(shuffle=True).state_dict()
    with pytest.raises(ValueError, match="saved with seed"):
        loader(shuffle=True, seed=1).load_state_dict(state)
    fewer = PackedImageLoader(photos.hugging_face().select(range(30)), PACKING, batch_size=2, shuffle=True)
    with pytest.raises(ValueError, match="saved with 40 images in its index"):
        fewer.load_state_dict(state)


def test_state_of_objects_holds_their_fingerprint_since_pixels_have_no_digest(make: Any) -> None:
    def of(fingerprint: str) -> PackedImageLoader:
        return PackedImageLoader(make("pairs"), PACKING, batch_size=2, fingerprint=fingerprint)

    state = of("first").state_dict()
    of("first").load_state_dict(state)
    with pytest.raises(ValueError, match="data = first, this loader has second"):
        of("second").load_state_dict(state)


def test_where_leaves_rows_out_and_counts_them(loader: Any) -> None:
    made = loader(where=lambda index: index.width > 30)
    expected = [str(i) for i in np.flatnonzero(made.index.width > 30)]
    assert sorted(keys_of(list(made))) == sorted(expected)
    stats = made.stats()
    assert stats["images"] == len(expected)
    assert stats["skipped"]["where"] == 40 - len(expected)


def test_worker_processes_give_the_batches_of_the_loader(loader: Any, contents: Any) -> None:
    expected = [contents(batch) for batch in loader(shuffle=True)]
    made = loader(shuffle=True, num_threads=1)
    workers = DataLoader(made.as_dataset(), batch_size=None, num_workers=2)
    assert [contents(batch) for batch in workers] == expected
    assert made.stats()["images"] == 40
    sent = pickle.loads(pickle.dumps(loader(shuffle=True)))  # noqa: S301
    assert [contents(batch) for batch in sent] == expected


def test_report_holds_what_an_epoch_counts(loader: Any) -> None:
    made = loader(shuffle=True, packing=PACKING.replace(resolution=FitTokens(20)))
    report = report_of(made)
    list(made)
    stats = made.stats()
    assert (report.images, report.packs) == (stats["images"], stats["packs"])


def test_streams_and_blocks_share_out_a_data_set(loader: Any) -> None:
    batches = list(loader(shuffle=True, num_streams=2, block=4))
    assert sorted(map(int, keys_of(batches))) == list(range(40))


def test_fresh_process_resumes_from_the_cached_sizes(photos: Photos, tmp_path: Path) -> None:
    photos.hugging_face().save_to_disk(str(tmp_path / "saved"))
    code = (
        "import datasets, json, sys\n"
        "from patchnpack import PackedImageLoader\n"
        "from tests.loaders.loading import PACKING\n"
        "made = PackedImageLoader(datasets.load_from_disk(sys.argv[1]), PACKING, batch_size=1, shuffle=True)\n"
        "if len(sys.argv) > 2: made.load_state_dict(json.loads(sys.argv[2]))\n"
        "keys, states = [], []\n"
        "for batch in made: keys.append(batch.keys); states.append(made.state_dict())\n"
        "print(json.dumps([keys, states]))\n"
    )

    def run(*arguments: str) -> Any:
        command = [sys.executable, "-c", code, str(tmp_path / "saved"), *arguments]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    keys, states = run()
    assert run(json.dumps(states[3]))[0] == keys[4:]


@pytest.mark.parametrize("kind", KINDS)
def test_corrupt_images_are_quarantined_and_counted(kind: str, tmp_path: Path) -> None:
    photos = Photos()
    photos.data[5] = b"no image at all"
    photos.data[8] = photos.data[8][:-40]  # a PNG that ends early
    photos.data[9] = photos.data[9][:200]  # a JPEG, ditto
    kinds: dict[str, Callable[[], Any]] = {
        "hugging face": photos.hugging_face,
        "folder": lambda: photos.folder(tmp_path / "photos"),
        "pairs": lambda: Items(40, lambda i: (_opened(photos.data[i]), photos.labels[i])),
    }
    made = kinds[kind]()
    quarantine = tmp_path / "bad.jsonl"
    policy = ErrorPolicy(quarantine=quarantine, truncated="skip")
    loader = PackedImageLoader(made, PACKING, batch_size=2, errors=policy, shuffle=True)
    batches = list(loader)
    stats = loader.stats()
    assert sorted(bad["key"] for bad in stats["bad"]) == ["5", "8", "9"]
    assert sorted(map(int, keys_of(batches))) == [i for i in range(40) if i not in (5, 8, 9)]
    assert stats["images"] + stats["bad_images"] == 40
    lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert {line["key"] for line in lines} == {"5", "8", "9"}
    assert {line["shard"] for line in lines} == {f"data set {type(made).__name__}"}


def _opened(data: bytes) -> Any:
    return Image.open(io.BytesIO(data))


def test_one_call_of_getitem_per_image_and_epoch(photos: Photos) -> None:
    items = Items(40, lambda i: (_opened(photos.data[i]), photos.labels[i]))
    loader = PackedImageLoader(items, PACKING, batch_size=2, shuffle=True)
    before = items.calls.copy()
    assert max(before) <= 3  # the pass over the sizes, the first item, the first label
    assert before[10:] == [1] * 30
    list(loader)
    assert [now - then for now, then in zip(items.calls, before, strict=True)] == [1] * 40


@pytest.mark.parametrize("thread_safe", [None, False, True])
def test_lock_keeps_calls_of_getitem_apart_unless_the_data_set_is_thread_safe(
    photos: Photos, thread_safe: bool | None, contents: Any
) -> None:
    items = Items(40, lambda i: (_opened(photos.data[i]), photos.labels[i]), pause_s=0.002)
    loader = PackedImageLoader(items, PACKING, batch_size=2, num_threads=4, thread_safe=thread_safe)
    batches = [contents(batch) for batch in loader]
    assert (items.at_once > 1) is (thread_safe is True)
    assert batches == [contents(batch) for batch in PackedImageLoader(items, PACKING, batch_size=2, num_threads=1)]
