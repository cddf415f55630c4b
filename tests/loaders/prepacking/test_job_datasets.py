"""Packing data sets of Python objects: the folder gives the batches that the data set gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from patchnpack.engines import run_local
from patchnpack.loaders import Job, PackedImageLoader
from patchnpack.loaders.prepacking.unpack import unpack
from patchnpack.loaders.prepacking.verify import verify
from patchnpack.packer import BetaDrop, PatchSizes, RandomResizedCrop, SampleSide
from tests.loaders.datasets.collections_of_images import Items
from tests.loaders.loading import keys_of
from tests.loaders.prepacking.dataset_kinds import (
    COUNT,
    KINDS,
    PHOTOS,
    STORES,
    Contents,
    all_of,
    pack,
    plain,
    sources,
)
from tests.loaders.prepacking.folders import PACKING, written


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", KINDS)
def test_packs_of_a_data_set_are_the_batches_that_it_gives(
    tmp_path: Path, kind: str, store: str, contents: Contents
) -> None:
    source, options = sources(tmp_path)[kind]
    loader = PackedImageLoader(source, PACKING, batch_size=2, shuffle=True, **options)
    want = all_of(contents, loader)
    job = pack(source, tmp_path / "out", options, store=store, shuffle=True)
    packed = PackedImageLoader(tmp_path / "out", batch_size=2)
    assert all_of(contents, packed) == want
    assert packed.stats()["images"] == loader.stats()["images"] == len(loader.index)
    assert packed.context.labels.num_classes == loader.context.labels.num_classes
    assert packed.classes == loader.classes
    assert not verify(tmp_path / "out").problems
    assert unpack(tmp_path / "out", tmp_path / "shards") == len(loader.index)
    shards = PackedImageLoader(str(tmp_path / "shards" / "*.tar"), PACKING, batch_size=2)
    assert sorted(keys_of(list(shards))) == sorted(loader.index.keys)
    files = written(tmp_path / "out")
    pack(source, tmp_path / "again", options, store=store, shuffle=True)
    assert written(tmp_path / "again") == files
    assert job.run()  # finished: nothing is written
    assert written(tmp_path / "out") == files


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", ["hugging face", "pairs", "records"])
def test_ranks_threads_and_resumes_on_packs_equal_those_on_the_data_set(
    tmp_path: Path, kind: str, store: str, contents: Contents
) -> None:
    source, options = sources(tmp_path)[kind]
    pack(source, tmp_path / "out", options, store=store, shuffle=True)
    for ranks in (1, 2, 3):
        for rank in range(ranks):
            given: dict[str, Any] = {
                "batch_size": 2,
                "block": 12,
                "rank": rank,
                "world_size": ranks,
                "num_threads": 1 + 3 * (rank % 2),
            }
            loader = PackedImageLoader(source, PACKING, shuffle=True, **given, **options)
            assert all_of(contents, PackedImageLoader(tmp_path / "out", **given)) == all_of(contents, loader)
    packed = PackedImageLoader(tmp_path / "out", batch_size=1)
    batches, states = [], []
    for batch in packed:
        batches.append(plain(contents(batch)))
        states.append(json.loads(json.dumps(packed.state_dict())))
    assert len(batches) >= 10
    for step in range(len(batches) - 1):
        again = PackedImageLoader(tmp_path / "out", batch_size=1)
        again.load_state_dict(states[step])
        assert all_of(contents, again) == batches[step + 1 :]
    left = []
    for rank in range(3):
        one = PackedImageLoader(tmp_path / "out", batch_size=2, rank=rank, world_size=3)
        one.load_state_dict(states[2])
        left += keys_of(list(one))
    used = [key for _, keys, *_ in batches[:3] for pack_keys in keys for key in pack_keys]
    assert sorted(used + left) == sorted(packed.index.keys)


CHANGING = {
    "sizes": PACKING.replace(patch_size=PatchSizes((4, 8))),
    "crop": PACKING.replace(resolution=RandomResizedCrop(max_tokens=20), token_drop=BetaDrop(0.3, 0.5)),
    "skip": PACKING.replace(resolution=SampleSide(low=16, high=120), seq_len=48, oversize="skip"),
}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("change", CHANGING)
def test_plans_that_change_from_epoch_to_epoch_are_stored(
    tmp_path: Path, change: str, store: str, contents: Contents
) -> None:
    source, options = sources(tmp_path)["pairs"]
    given: dict[str, Any] = {"shuffle": True, "block": 4}
    loader = PackedImageLoader(source, CHANGING[change], batch_size=4, **given, **options)
    want = [all_of(contents, loader) for _ in range(2)]
    pack(source, tmp_path / "out", options, CHANGING[change], store=store, epochs=2, **given)
    packed = PackedImageLoader(tmp_path / "out", batch_size=4, block=None if change == "sizes" else 4)
    assert [all_of(contents, packed) for _ in range(2)] == want
    assert not verify(tmp_path / "out").problems


@pytest.mark.parametrize("store", STORES)
def test_tasks_in_other_processes_write_the_same_bytes_and_killed_ones_are_made_up_for(
    tmp_path: Path, store: str
) -> None:
    for kind in ("pairs", "records", "hugging face"):
        source, options = sources(tmp_path)[kind]
        want = written(Path(pack(source, tmp_path / kind / "one", options, store=store).out))
        out = tmp_path / kind / "tasks"
        given = {"source": source, "out": str(out), "packing": PACKING, "part_packs": 3, "store": store} | options
        assert not Job(**given).run(1, 2)
        parts = sorted((out / "parts").iterdir())
        (out / "done" / f"{parts[0].stem}.json").unlink()
        parts[0].write_bytes(b"half a part")
        assert not Job(**given).run(1, 2)
        assert Job(**given).run(0, 2)
        assert written(out) == want
        if kind == "records":
            assert run_local(Job(**given | {"out": str(tmp_path / kind / "local")}), 2)
            assert written(tmp_path / kind / "local") == want


def test_workers_do_not_read_the_sizes_again(tmp_path: Path) -> None:
    items = Items(COUNT, lambda i: (PHOTOS.pixels(i), PHOTOS.labels[i]))
    job = Job(source=items, out=str(tmp_path / "out"), packing=PACKING)
    before = list(items.calls)
    sent = job.absolute()
    assert items.calls == before
    assert sent.run()
    assert sum(items.calls) - sum(before) <= COUNT + 3  # the image, once; the first label to see its type
