from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from patchnpack.loaders import BadDataError, ErrorPolicy, Index, Mixture, PackedImageLoader, scan
from patchnpack.loaders.packs.recipe import Recipe, unit_name
from patchnpack.loaders.prepacking.job import Job
from patchnpack.packer import (
    BetaDrop,
    ConstantDrop,
    FitTokens,
    Native,
    PackedBatch,
    Packing,
    PatchSizes,
    RandomResizedCrop,
    SampleSide,
    ScheduledDrop,
    ScheduledResolution,
)

PACKING = Packing(seq_len=64, patch_size=8, max_images=7, balance=4)
CHANGING = {
    "sizes": PACKING.replace(patch_size=PatchSizes((4, 8))),
    "side": PACKING.replace(resolution=SampleSide(low=16, high=64)),
    "crop": PACKING.replace(resolution=RandomResizedCrop(max_tokens=20), token_drop=BetaDrop(0.3, 0.5)),
    "drop": PACKING.replace(token_drop=ScheduledDrop(drop=ConstantDrop(0.5), start=1, end=0, midpoint=60, tau=20)),
    "curriculum": PACKING.replace(resolution=ScheduledResolution(((0, FitTokens(9)), (60, FitTokens(30))))),
    "skip": PACKING.replace(resolution=SampleSide(low=16, high=120), seq_len=48, oversize="skip"),
}

Contents = Callable[[PackedBatch], tuple[object, ...]]
MakeDrawn = Callable[..., Any]


@pytest.fixture(scope="module")
def index(drawn: Any) -> Index:
    return scan(drawn.shards)


def written(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keys_of(batches: Any) -> list[str]:
    return [key for batch in batches for keys in batch.keys for key in keys]


# The same batches as of the shards


@pytest.mark.parametrize("store", ["images", "patches"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_streams", [1, 3])
def test_first_epoch_is_that_of_the_shards(
    store: Any, shuffle: bool, num_streams: int, index: Index, tmp_path: Path, contents: Contents
) -> None:
    packing = PACKING.replace(token_drop=BetaDrop(0.4, 0.6))
    order: dict[str, Any] = {"shuffle": shuffle, "num_streams": num_streams, "seed": 5, "shuffle_window": 2}
    job = Job(
        index=index,
        out=str(tmp_path / "out"),
        packing=packing,
        store=store,
        label="cls",
        extras=["txt"],
        part_packs=3,
        **order,
    )
    assert job.run()
    theirs = PackedImageLoader(index, packing, batch_size=3, label="cls", extras=["txt"], **order)
    ours = PackedImageLoader(tmp_path / "out", batch_size=3, seed=5)
    assert len(ours) == len(theirs)
    assert list(map(contents, ours)) == list(map(contents, theirs))
    assert ours.num_classes == theirs.num_classes
    for what in ("images", "tokens", "slots", "skipped", "oversize", "without_label", "bad_images"):
        assert ours.stats()[what] == theirs.stats()[what], what


@pytest.mark.parametrize("store", ["images", "patches"])
@pytest.mark.parametrize("name", CHANGING)
def test_each_of_several_plans_is_the_epoch_of_the_shards(
    name: str, store: Any, index: Index, tmp_path: Path, contents: Contents
) -> None:
    packing = CHANGING[name]
    order: dict[str, Any] = {"shuffle": True, "seed": 2, "block": 4 if name == "sizes" else None}
    job = Job(index=index, out=str(tmp_path / "out"), packing=packing, store=store, epochs=3, part_packs=3, **order)
    assert job.run()
    theirs = PackedImageLoader(index, packing, batch_size=4, **order)
    ours = PackedImageLoader(tmp_path / "out", batch_size=4, seed=2)
    for _ in range(3):
        assert list(map(contents, ours)) == list(map(contents, theirs))
    assert ours.stats()["skipped"] == theirs.stats()["skipped"]
    assert ours.stats()["images"] == theirs.stats()["images"]
    if name == "skip":
        assert theirs.stats()["skipped"]["oversize"] > 0
    # After the last plan the first comes again.
    fourth = [batch.grids for batch in ours]
    ours.set_epoch(0)
    again = [batch.grids for batch in ours]
    assert sorted(map(torch.Tensor.sum, fourth)) == sorted(map(torch.Tensor.sum, again))


def test_a_transform_and_other_labels_are_applied_as_images_are_read(
    index: Index, tmp_path: Path, contents: Contents
) -> None:
    def noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        out: np.ndarray = image ^ rng.integers(0, 256, image.shape, np.uint8)
        return out

    def length(members: dict[str, bytes]) -> int:
        return len(members["txt"])

    Job(index=index, out=str(tmp_path / "out"), packing=PACKING, part_packs=4).run()
    given: dict[str, Any] = {"transform": noisy, "label": length, "extras": ["cls"], "seed": 8, "batch_size": 2}
    ours = PackedImageLoader(tmp_path / "out", **given)
    theirs = PackedImageLoader(index, PACKING, **given)
    for _ in range(2):
        assert list(map(contents, ours)) == list(map(contents, theirs))


def test_other_tokens_are_kept_each_epoch_of_an_image_store_and_the_same_ones_of_a_patch_store(
    index: Index, tmp_path: Path
) -> None:
    packing = PACKING.replace(token_drop=ConstantDrop(0.5))
    for store in ("images", "patches"):
        out = tmp_path / store
        Job(index=index, out=str(out), packing=packing, store=store).run()
        loader = PackedImageLoader(out, batch_size=1)
        first, second = list(loader), list(loader)
        assert [batch.rows.tolist() for batch in first] == [batch.rows.tolist() for batch in second]
        assert [batch.lengths for batch in first] == [batch.lengths for batch in second]
        same = [torch.equal(a.coords, b.coords) for a, b in zip(first, second, strict=True)]
        assert all(same) if store == "patches" else not all(same)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_packs_are_the_packs(compression: str, index: Index, tmp_path: Path, contents: Contents) -> None:
    for name, how in (("plain", None), ("packed", compression)):
        job = Job(
            index=index,
            out=str(tmp_path / name),
            packing=PACKING,
            store="patches",
            compression=how,
            label="cls",
            part_packs=5,
        )
        job.run()
    plain, packed = (PackedImageLoader(tmp_path / name, batch_size=2) for name in ("plain", "packed"))
    assert list(map(contents, plain)) == list(map(contents, packed))
    assert sum(map(len, written(tmp_path / "packed").values())) < sum(map(len, written(tmp_path / "plain").values()))


def test_targets_and_json_come_back(
    make_drawn: MakeDrawn, encode_image: Any, draw_image: Any, write_tar: Any, tmp_path: Path, contents: Contents
) -> None:
    members = []
    for i in range(12):
        members.append((f"{i}.png", encode_image(draw_image(20 + i, 30), "PNG")))
        if i % 3:
            members.append((f"{i}.json", json.dumps({"target": [i / 4, 1.5], "words": ["ü", None]}).encode()))
    index = scan([write_tar(tmp_path / "a.tar", members)])
    given: dict[str, Any] = {"label": "json:target", "extras": ["json"]}
    for store in ("images", "patches"):
        Job(index=index, out=str(tmp_path / store), packing=PACKING, store=store, **given).run()
        ours = PackedImageLoader(tmp_path / store, batch_size=2)
        theirs = PackedImageLoader(index, PACKING, batch_size=2, **given)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.labels, b.labels) or torch.allclose(a.labels, b.labels, equal_nan=True)
            assert contents(a)[1:] == contents(b)[1:]
        assert ours.stats()["without_label"] == theirs.stats()["without_label"] == 4
        assert ours.num_classes == 2


# Reading


@pytest.mark.parametrize("store", ["images", "patches"])
def test_shuffled_packs_are_other_ones_each_epoch_and_each_image_comes_once(
    store: Any, drawn: Any, index: Index, tmp_path: Path
) -> None:
    Job(index=index, out=str(tmp_path / "out"), packing=PACKING, store=store, part_packs=2, num_streams=2).run()
    loader = PackedImageLoader(tmp_path / "out", batch_size=2, shuffle=True, shuffle_window=3)
    epochs = [keys_of(loader) for _ in range(3)]
    assert all(sorted(keys) == sorted(drawn.keys) for keys in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = PackedImageLoader(tmp_path / "out", batch_size=2, shuffle=True, shuffle_window=3, seed=1)
    assert keys_of(other) != epochs[0]
    plain = PackedImageLoader(tmp_path / "out", batch_size=2)
    packs = {tuple(keys) for batch in plain for keys in batch.keys}
    loader.set_epoch(7)
    assert {tuple(keys) for batch in loader for keys in batch.keys} == packs


@pytest.mark.parametrize("num_streams", [1, 2])
def test_shuffled_blocks_keep_to_one_patch_size(num_streams: int, drawn: Any, index: Index, tmp_path: Path) -> None:
    packing = CHANGING["sizes"].replace(seq_len=24)
    Job(
        index=index,
        out=str(tmp_path / "out"),
        packing=packing,
        epochs=2,
        block=4,
        part_packs=2,
        num_streams=num_streams,
    ).run()
    loader = PackedImageLoader(tmp_path / "out", batch_size=2, shuffle=True, shuffle_window=1)
    orders = []
    for _ in range(4):
        batches = list(loader)
        assert sorted(keys_of(batches)) == sorted(drawn.keys)
        orders.append([batch.patch_size for batch in batches])
        assert {4, 8} == set(orders[-1])
    assert orders[0] != orders[2]  # of one plan


@pytest.mark.parametrize("store", ["images", "patches"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_state_resumes_to_exactly_the_batches_that_were_left(
    store: Any, shuffle: bool, index: Index, tmp_path: Path, contents: Contents
) -> None:
    Job(index=index, out=str(tmp_path / "out"), packing=PACKING, store=store, part_packs=3, shuffle=True).run()

    def make() -> PackedImageLoader:
        return PackedImageLoader(tmp_path / "out", batch_size=2, shuffle=shuffle, shuffle_window=2, num_threads=1)

    loader = make()
    states, batches = [], []
    for batch in loader:
        batches.append(contents(batch))
        states.append(json.dumps(loader.state_dict()))
    for step, state in enumerate(states[:-1]):
        again = make()
        again.load_state_dict(json.loads(state))
        assert list(map(contents, again)) == batches[step + 1 :]


@pytest.mark.parametrize("store", ["images", "patches"])
def test_a_state_goes_on_with_other_ranks_and_nothing_repeats_or_is_lost(
    store: Any, drawn: Any, index: Index, tmp_path: Path
) -> None:
    Job(index=index, out=str(tmp_path / "out"), packing=PACKING, store=store, part_packs=3).run()

    def make(rank: int, world_size: int) -> PackedImageLoader:
        return PackedImageLoader(
            tmp_path / "out", batch_size=1, shuffle=True, rank=rank, world_size=world_size, num_threads=1, block=6
        )

    ranks = [make(rank, 2) for rank in range(2)]
    seen = [key for rank in ranks for key in keys_of(islice(iter(rank), 3))]
    state = ranks[0].state_dict()
    assert state == ranks[1].state_dict()
    counts = set()
    for rank in range(3):
        loader = make(rank, 3)
        loader.load_state_dict(state)
        batches = list(loader)
        counts.add(len(batches))
        seen += keys_of(batches)
    assert len(counts) == 1
    assert sorted(seen) == sorted(drawn.keys)


def test_a_state_of_another_seed_of_draws_or_of_other_packs_is_refused(index: Index, tmp_path: Path) -> None:
    packing = PACKING.replace(token_drop=ConstantDrop(0.5))
    for name, seed in (("a", 0), ("b", 1)):
        Job(index=index, out=str(tmp_path / name), packing=packing, shuffle=True, seed=seed).run()
    state = PackedImageLoader(tmp_path / "a", batch_size=1).state_dict()
    PackedImageLoader(tmp_path / "a", batch_size=1).load_state_dict(state)
    for source, options, what in (
        ("a", {"seed": 9}, "seed of draws = 0, this loader has 9"),
        ("a", {"shuffle": True}, "packs shuffled = False, this loader has True"),
        ("b", {}, "other ones or in another order"),
    ):
        with pytest.raises(ValueError, match=what):
            PackedImageLoader(tmp_path / source, batch_size=1, **options).load_state_dict(state)


@pytest.mark.parametrize("store", ["images", "patches"])
def test_worker_processes_give_the_batches_of_the_loader(
    store: Any, index: Index, tmp_path: Path, contents: Contents
) -> None:
    Job(index=index, out=str(tmp_path / "out"), packing=PACKING, store=store, part_packs=3).run()
    loader = PackedImageLoader(tmp_path / "out", batch_size=2, num_threads=1)
    expected = list(map(contents, loader))
    loader.set_epoch(0)
    for context in ("fork", "spawn"):
        data = DataLoader(
            PackedImageLoader(tmp_path / "out", batch_size=2, num_threads=1).as_dataset(),
            batch_size=None,
            num_workers=2,
            multiprocessing_context=context,
        )
        assert list(map(contents, data)) == expected


def test_stored_patches_lie_in_the_map_and_writing_to_them_changes_neither_file_nor_next_epoch(
    index: Index, tmp_path: Path, contents: Contents
) -> None:
    Job(index=index, out=str(tmp_path / "out"), packing=PACKING, store="patches").run()
    before = written(tmp_path / "out")
    loader = PackedImageLoader(tmp_path / "out", batch_size=2)
    first = list(loader)
    expected = list(map(contents, first))
    # Consecutive packs stand one after another in the same map: they were not copied.
    assert first[1].patches.data_ptr() == first[0].patches.data_ptr() + first[0].patches.numel()
    for batch in first:
        batch.patches.fill_(7)
        batch.segment_ids.zero_()
    loader.set_epoch(0)
    again = PackedImageLoader(tmp_path / "out", batch_size=2)
    assert list(map(contents, again)) == expected
    assert list(map(contents, loader)) == expected
    assert written(tmp_path / "out") == before


def test_photographs_come_as_from_their_shards(clothing: str, tmp_path: Path, contents: Contents) -> None:
    index = scan(clothing + "/train-{000008..000009}.tar")
    packing = Packing(seq_len=4096, resolution=Native(max_tokens=900))
    for store in ("images", "patches"):
        Job(index=index, out=str(tmp_path / store), packing=packing, store=store, shuffle=True, label="cls").run()
        ours = PackedImageLoader(tmp_path / store, batch_size=4)
        theirs = PackedImageLoader(index, packing, batch_size=4, shuffle=True, label="cls")
        for a, b in zip(ours, theirs, strict=True):
            assert contents(a) == contents(b)


# Bad images


def test_bad_images_are_counted_each_epoch_as_they_are_with_shards(
    make_drawn: MakeDrawn, tmp_path: Path, contents: Contents
) -> None:
    drawn = make_drawn((20, 20))
    good = scan(drawn.shards)
    first, second = drawn.keys[3], drawn.keys[31]
    kind = {key: ("jpg", "png")[i % 2] for i, key in enumerate(drawn.keys)}
    data = {key: (good.offset[i], good.nbytes[i]) for i, key in enumerate(drawn.keys)}
    cut = {}
    for key in (first, second):
        offset, nbytes = data[key]
        shard = drawn.shards[drawn.keys.index(key) >= 20]
        image = Path(shard).read_bytes()[offset : offset + nbytes]
        cut[f"{key}.{kind[key]}"] = image[: len(image) // 2]
    cut[f"{drawn.keys[5]}.{kind[drawn.keys[5]]}"] = b"no image at all"
    drawn.rewrite(cut)
    index = scan(drawn.shards)
    assert len(index.bad) == 1
    theirs = PackedImageLoader(index, PACKING, batch_size=2, label="cls")
    expected = [list(map(contents, theirs)) for _ in range(2)]
    for store in ("images", "patches"):
        job = Job(index=index, out=str(tmp_path / store), packing=PACKING, store=store, label="cls", part_packs=3)
        job.run()
        ours = PackedImageLoader(tmp_path / store, batch_size=2)
        assert [list(map(contents, ours)) for _ in range(2)] == expected
        for what in ("images", "bad_images", "bad_by_stage", "skipped"):
            assert ours.stats()[what] == theirs.stats()[what]
        same = [[{**row, "shard": "", "offset": 0} for row in loader.stats()["bad"]] for loader in (ours, theirs)]
        assert same[0] == same[1]
        assert ours.stats()["images"] + ours.stats()["bad_images"] == 2 * len(index)
        manifest = json.loads((tmp_path / store / "manifest.json").read_bytes())
        assert manifest["counts"]["bad"] == (2 if store == "patches" else 0)


def test_a_shard_whose_bytes_changed_is_told_when_it_is_packed(make_drawn: MakeDrawn, tmp_path: Path) -> None:
    drawn = make_drawn((10,))
    index = scan(drawn.shards)
    damaged = bytearray(Path(drawn.shards[0]).read_bytes())
    damaged[int(index.offset[4]) + 30] ^= 1
    times = Path(drawn.shards[0]).stat()
    Path(drawn.shards[0]).write_bytes(damaged)
    with pytest.raises(OSError, match="was written to since it was indexed"):
        Job(index=index, out=str(tmp_path / "a"), packing=PACKING).run()
    os.utime(drawn.shards[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    Job(index=index, out=str(tmp_path / "b"), packing=PACKING).run()
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_bytes())
    assert [bad["key"] for bad in manifest["bad"]] == [drawn.keys[4]]
    loader = PackedImageLoader(tmp_path / "b", batch_size=1)
    assert drawn.keys[4] not in keys_of(loader)
    assert loader.stats()["bad_by_stage"] == {"read": 1}


def test_more_bad_images_than_max_rate_are_an_error_and_no_manifest(
    write_tar: Any, encode_image: Any, draw_image: Any, tmp_path: Path
) -> None:
    data = encode_image(draw_image(16, 16), "PNG")
    members = [(f"{i:04d}.png", data if i % 50 else data[:-30]) for i in range(1200)]
    index = scan([write_tar(tmp_path / "a.tar", members)])
    given: dict[str, Any] = {"index": index, "packing": PACKING, "store": "patches", "part_packs": 20}
    with pytest.raises(BadDataError, match=r"24 of the 1200 images in all were bad, more than max_rate 0.01 allows"):
        Job(out=str(tmp_path / "out"), **given).run()
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(BadDataError, match=r"bad image .*'0000'.* on_error='skip'"):
        Job(out=str(tmp_path / "raise"), errors=ErrorPolicy(on_error="raise"), **given).run()
    # What was finished serves a run that allows more: the limit is no part of what is written.
    assert Job(out=str(tmp_path / "out"), errors=ErrorPolicy(max_rate=0.03), **given).run()


# Mistakes


@pytest.mark.parametrize("name", [name for name in CHANGING if name != "skip"])
def test_what_changes_grids_between_epochs_asks_for_epochs(name: str, index: Index, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a stored plan fixes them; .*--epochs E"):
        Job(index=index, out=str(tmp_path / "out"), packing=CHANGING[name], block=4)
    assert not (tmp_path / "out").exists()


def test_options_that_cannot_be_are_refused_before_anything_is_written(index: Index, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "file").write_text("")
    for changes, what in (
        ({"packing": CHANGING["sizes"], "epochs": 2}, r"say how many packs a block has: --block"),
        ({"store": "pixels"}, "store is 'pixels'; it must be 'images' or 'patches'"),
        ({"compression": "lz4"}, "compression is for store='patches'"),
        ({"store": "patches", "compression": "gzip"}, "compression is 'gzip'"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"part_packs": 0}, "part_packs is 0; it must be at least 1"),
        ({"label": len}, "packs are written with a label that has a name"),
        ({"label": "none"}, "absent from all 60 samples"),
        ({"extras": ["none"]}, "extras asks for 'none'"),
        ({"out": "https://host/packs"}, "is a web server"),
        ({"out": str(tmp_path / "file")}, "is a file; name a folder"),
        ({"out": ""}, "name one of its own"),
    ):
        given: dict[str, Any] = {"index": index, "out": str(out), "packing": PACKING, **changes}
        with pytest.raises(ValueError, match=what):
            Job(**given)
        assert not out.exists()
    job = Job(index=index, out=str(out), packing=PACKING)
    for task, tasks in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=r"task is|num_tasks is"):
            job.run(task, tasks)


@pytest.fixture
def packed(index: Index, tmp_path: Path) -> Path:
    """A small image store."""
    Job(index=index, out=str(tmp_path / "packed"), packing=PACKING, part_packs=3, label="cls").run()
    return tmp_path / "packed"


@pytest.mark.parametrize("store", ["images", "patches"])
def test_options_that_the_packs_have_decided_are_refused(store: Any, index: Index, tmp_path: Path) -> None:
    out = tmp_path / "out"
    Job(index=index, out=str(out), packing=PACKING, store=store, label="cls", num_streams=2).run()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"packing": PACKING.replace(seq_len=128)}, r"packing.seq_len is 128, and the packs .* were written with 64"),
        ({"where": lambda index: index.width > 3}, r"where= cannot be given"),
        ({"index": index}, r"index= cannot be given"),
        ({"num_streams": 3}, r"num_streams is 3, and the packs in .* are in 2"),
        ({"errors": ErrorPolicy(max_pixels=10)}, r"max_pixels is 10, and the packs .* were planned with 178956970"),
    ]
    if store == "patches":
        wrong += [
            ({"transform": lambda image, rng: image}, r"transform= cannot be given .*store='images'"),
            ({"label": "txt"}, r"label is 'txt', and the packs in .* hold the labels of 'cls'"),
            ({"classes": ["a"]}, r"classes is \['a'\]"),
            ({"extras": ["txt"]}, r"extras asks for 'txt', and the packs .* hold \[\]; pack anew"),
        ]
    for options, what in wrong:
        with pytest.raises(ValueError, match=what):
            PackedImageLoader(out, batch_size=2, **options)
    PackedImageLoader(out, PACKING, batch_size=2, num_streams=2, label="cls")
    with pytest.raises(ValueError, match="is a packed folder"):
        PackedImageLoader(Mixture({"a": (str(out), 1)}), PACKING, batch_size=2)


def test_folder_that_holds_something_else_is_refused_and_left_as_it_is(index: Index, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds something else \('notes.txt'\); name an empty folder"):
        Job(index=index, out=str(out), packing=PACKING)
    assert written(out) == {"notes.txt": b"mine"}


def test_folder_of_other_packs_is_refused_and_left_as_it_is(drawn: Any, index: Index, packed: Path) -> None:
    before = written(packed)
    given: dict[str, Any] = {"index": index, "out": str(packed), "packing": PACKING, "part_packs": 3, "label": "cls"}
    for changes, what in (
        ({"packing": PACKING.replace(seq_len=128)}, r"packing.seq_len is 128 here and 64 there"),
        ({"seed": 1}, "seed is 1 here and 0 there"),
        ({"store": "patches"}, "store is 'patches' here and 'images' there"),
        ({"index": scan(drawn.shards[:2])}, r"source.shards is \[.*\] here and"),
    ):
        with pytest.raises(ValueError, match=what):
            Job(**given | changes)
    assert Job(**given).run()
    assert written(packed) == before


def test_packs_of_another_schema_are_refused(packed: Path, index: Index) -> None:
    for name in ("manifest.json", "recipe.json"):
        text = (packed / name).read_text()
        (packed / name).write_text(text.replace('"schema": 1', '"schema": 99', 1))
    with pytest.raises(ValueError, match=r"is of schema 99, this is 1; read it with the patchnpack that made it"):
        PackedImageLoader(packed, batch_size=1)
    with pytest.raises(ValueError, match=r"is of schema 99, this is 1"):
        Job(index=index, out=str(packed), packing=PACKING, part_packs=3, label="cls")


def test_unfinished_or_damaged_packs_are_refused(packed: Path) -> None:
    manifest = (packed / "manifest.json").read_bytes()
    for text, what in (
        (b"{", "is damaged or no file of patchnpack"),
        (b"[]", "is damaged or no file of patchnpack"),
        (manifest.replace(b'"padding"', b'"other"'), r"is damaged \(KeyError: 'padding'\)"),
        (manifest.replace(b'"kind": "Packing"', b'"kind": "Sacking"'), "is damaged .KeyError: 'Sacking'"),
    ):
        (packed / "manifest.json").write_bytes(text)
        with pytest.raises(ValueError, match=what):
            PackedImageLoader(packed, batch_size=1)
    (packed / "manifest.json").unlink()
    with pytest.raises(ValueError, match="are not finished; run the same patchnpack pack command again"):
        PackedImageLoader(packed, batch_size=1)


@pytest.mark.parametrize("name", ["parts/e0000-s000-00000001.arrow", "rows.arrow", "plans/e0000-s000.arrow"])
def test_files_that_do_not_match_the_manifest_are_refused(name: str, packed: Path) -> None:
    data = (packed / name).read_bytes()
    (packed / name).write_bytes(data[:-1])
    with pytest.raises(OSError, match=rf"{name} has {len(data) - 1} bytes, and should have {len(data)}"):
        PackedImageLoader(packed, batch_size=1)
    (packed / name).unlink()
    with pytest.raises(OSError, match=rf"{name} is not there, and should have"):
        PackedImageLoader(packed, batch_size=1)
    (packed / name).write_bytes(b"0" * len(data))
    if not name.startswith("parts"):
        with pytest.raises(ValueError, match="is not what the manifest says"):
            list(PackedImageLoader(packed, batch_size=1))


def test_copied_folder_is_read_where_it_lies(packed: Path, tmp_path: Path, contents: Contents) -> None:
    expected = list(map(contents, PackedImageLoader(packed, batch_size=2)))
    shutil.move(packed, tmp_path / "moved")
    assert list(map(contents, PackedImageLoader(str(tmp_path / "moved") + "/", batch_size=2))) == expected


@pytest.mark.parametrize("packing", [PACKING, *CHANGING.values()], ids=["plain", *CHANGING])
def test_recipes_come_back_from_their_texts(packing: Packing, index: Index, tmp_path: Path) -> None:
    recipe = Job(index=index, out=str(tmp_path / "out"), packing=packing, epochs=2, block=4).recipe
    assert Recipe.from_plain(json.loads(recipe.to_json())) == recipe


def test_parts_are_named_in_order() -> None:
    names = [unit_name(epoch, stream, n) for epoch in (0, 1, 11) for stream in (0, 2, 10) for n in (0, 9, 10**7)]
    assert names == sorted(names)


def test_where_the_shards_lie_changes_no_byte(make_drawn: MakeDrawn, tmp_path: Path) -> None:
    drawn = make_drawn((12, 12))
    index = scan(drawn.shards)
    low, size = int(index.offset[7]), int(index.nbytes[7])
    half = Path(drawn.shards[0]).read_bytes()[low : low + size // 2]
    drawn.rewrite({f"{drawn.keys[3]}.png": b"no image", f"{drawn.keys[5]}.cls": None, f"{drawn.keys[7]}.png": half})
    (tmp_path / "moved").mkdir()
    moved = [shutil.copy(shard, tmp_path / "moved") for shard in drawn.shards]
    for store in ("images", "patches"):
        for name, shards in (("a", drawn.shards), ("b", moved)):
            Job(index=scan(shards), out=str(tmp_path / store / name), packing=PACKING, store=store, label="cls").run()
        assert written(tmp_path / store / "a") == written(tmp_path / store / "b")
        assert (json.loads((tmp_path / store / "a" / "manifest.json").read_bytes())["counts"]["bad"] > 0) == (
            store == "patches"
        )
