from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from patchnpack.loaders import ErrorPolicy, Index, Mixture, PackedImageLoader, scan
from patchnpack.loaders.packs.recipe import SCHEMA
from patchnpack.loaders.prepacking.job import Job
from patchnpack.packer import (
    ConstantDrop,
    Native,
    PackedBatch,
    Packing,
)
from tests.loaders.prepacking.folders import CHANGING, PACKING, keys_of, written

Contents = Callable[[PackedBatch], tuple[object, ...]]
MakeDrawn = Callable[..., Any]


# Reading


@pytest.mark.parametrize("store", ["images", "patches"])
def test_shuffled_packs_change_each_epoch_and_hold_each_image_once(
    store: Any, drawn: Any, index: Index, tmp_path: Path
) -> None:
    Job(source=index, out=str(tmp_path / "out"), packing=PACKING, store=store, part_packs=2, num_streams=2).run()
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
def test_shuffled_blocks_keep_one_patch_size(num_streams: int, drawn: Any, index: Index, tmp_path: Path) -> None:
    packing = CHANGING["sizes"].replace(seq_len=24)
    Job(
        source=index,
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
    assert orders[0] != orders[2]  # both are read from one plan


@pytest.mark.parametrize("store", ["images", "patches"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_state_resumes_with_exactly_the_remaining_batches(
    store: Any, shuffle: bool, index: Index, tmp_path: Path, contents: Contents
) -> None:
    Job(source=index, out=str(tmp_path / "out"), packing=PACKING, store=store, part_packs=3, shuffle=True).run()

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
def test_state_resumes_on_other_ranks_without_repeats_or_losses(
    store: Any, drawn: Any, index: Index, tmp_path: Path
) -> None:
    Job(source=index, out=str(tmp_path / "out"), packing=PACKING, store=store, part_packs=3).run()

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


def test_state_of_another_draw_seed_or_other_packs_is_refused(index: Index, tmp_path: Path) -> None:
    packing = PACKING.replace(token_drop=ConstantDrop(0.5))
    for name, seed in (("a", 0), ("b", 1)):
        Job(source=index, out=str(tmp_path / name), packing=packing, shuffle=True, seed=seed).run()
    state = PackedImageLoader(tmp_path / "a", batch_size=1).state_dict()
    PackedImageLoader(tmp_path / "a", batch_size=1).load_state_dict(state)
    for source, options, what in (
        ("a", {"seed": 9}, "seed of draws = 0, this loader has 9"),
        ("a", {"shuffle": True}, "packs shuffled = False, this loader has True"),
        ("b", {}, "other images or another order"),
    ):
        with pytest.raises(ValueError, match=what):
            PackedImageLoader(tmp_path / source, batch_size=1, **options).load_state_dict(state)


@pytest.mark.parametrize("store", ["images", "patches"])
def test_worker_processes_yield_the_batches_of_the_loader(
    store: Any, index: Index, tmp_path: Path, contents: Contents
) -> None:
    Job(source=index, out=str(tmp_path / "out"), packing=PACKING, store=store, part_packs=3).run()
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


def test_writing_to_mapped_patches_changes_neither_the_file_nor_the_next_epoch(
    index: Index, tmp_path: Path, contents: Contents
) -> None:
    Job(source=index, out=str(tmp_path / "out"), packing=PACKING, store="patches").run()
    before = written(tmp_path / "out")
    loader = PackedImageLoader(tmp_path / "out", batch_size=2)
    first = list(loader)
    expected = list(map(contents, first))
    # Consecutive packs are adjacent in the same map: they were not copied.
    assert first[1].patches.data_ptr() == first[0].patches.data_ptr() + first[0].patches.numel()
    for batch in first:
        batch.patches.fill_(7)
        batch.segment_ids.zero_()
    loader.set_epoch(0)
    again = PackedImageLoader(tmp_path / "out", batch_size=2)
    assert list(map(contents, again)) == expected
    assert list(map(contents, loader)) == expected
    assert written(tmp_path / "out") == before


def test_photographs_equal_those_of_their_shards(clothing: str, tmp_path: Path, contents: Contents) -> None:
    index = scan(clothing + "/train-{000008..000009}.tar")
    packing = Packing(seq_len=4096, resolution=Native(max_tokens=900))
    for store in ("images", "patches"):
        Job(source=index, out=str(tmp_path / store), packing=packing, store=store, shuffle=True, label="cls").run()
        ours = PackedImageLoader(tmp_path / store, batch_size=4)
        theirs = PackedImageLoader(index, packing, batch_size=4, shuffle=True, label="cls")
        for a, b in zip(ours, theirs, strict=True):
            assert contents(a) == contents(b)


@pytest.mark.parametrize("store", ["images", "patches"])
def test_options_that_the_packs_have_decided_are_refused(store: Any, index: Index, tmp_path: Path) -> None:
    out = tmp_path / "out"
    Job(source=index, out=str(out), packing=PACKING, store=store, label="cls", num_streams=2).run()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"packing": PACKING.replace(seq_len=128)}, r"packing.seq_len is 128, and the packs .* were written with 64"),
        ({"where": lambda index: index.width > 3}, r"where= cannot be given"),
        ({"index": index}, r"index= cannot be given"),
        ({"num_streams": 3}, r"num_streams is 3, and the packs in .* are in 2"),
        ({"errors": ErrorPolicy(max_pixels=10)}, r"max_pixels is 10, and the packs .* were planned with 178956970"),
    ]
    of_store: dict[str, list[tuple[dict[str, Any], str]]] = {
        "images": [],
        "patches": [
            ({"transform": lambda image, rng: image}, r"transform= cannot be given .*store='images'"),
            ({"label": "txt"}, r"label is 'txt', and the packs in .* hold the labels of 'cls'"),
            ({"classes": ["a"]}, r"classes is \['a'\]"),
            ({"extras": ["txt"]}, r"extras asks for 'txt', and the packs .* hold \[\]; pack again"),
        ],
    }
    wrong += of_store[store]
    for options, what in wrong:
        with pytest.raises(ValueError, match=what):
            PackedImageLoader(out, batch_size=2, **options)
    PackedImageLoader(out, PACKING, batch_size=2, num_streams=2, label="cls")
    with pytest.raises(ValueError, match="is a packed folder"):
        PackedImageLoader(Mixture({"a": (str(out), 1)}), PACKING, batch_size=2)


def test_packs_of_another_schema_are_refused(packed: Path, index: Index) -> None:
    for name in ("manifest.json", "recipe.json"):
        text = (packed / name).read_text()
        (packed / name).write_text(text.replace(f'"schema": {SCHEMA}', '"schema": 99', 1))
    with pytest.raises(
        ValueError, match=f"has schema 99, this version reads {SCHEMA}; read it with the patchnpack that made it"
    ):
        PackedImageLoader(packed, batch_size=1)
    with pytest.raises(ValueError, match=f"has schema 99, this version reads {SCHEMA}"):
        Job(source=index, out=str(packed), packing=PACKING, part_packs=3, label="cls")


def test_unfinished_or_damaged_packs_are_refused(packed: Path) -> None:
    manifest = (packed / "manifest.json").read_bytes()
    for text, what in (
        (b"{", "is damaged or not a file of patchnpack"),
        (b"[]", "is damaged or not a file of patchnpack"),
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


def test_moved_folder_is_read_at_its_new_place(packed: Path, tmp_path: Path, contents: Contents) -> None:
    expected = list(map(contents, PackedImageLoader(packed, batch_size=2)))
    shutil.move(packed, tmp_path / "moved")
    assert list(map(contents, PackedImageLoader(str(tmp_path / "moved") + "/", batch_size=2))) == expected
