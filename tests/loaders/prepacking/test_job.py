from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack.loaders import BadDataError, ErrorPolicy, Index, PackedImageLoader, scan
from patchnpack.loaders.packs.recipe import Recipe, unit_name
from patchnpack.loaders.prepacking.job import Job
from patchnpack.packer import (
    BetaDrop,
    ComplexityDrop,
    ConstantDrop,
    PackedBatch,
    Packing,
)
from tests.loaders.prepacking.folders import CHANGING, PACKING, keys_of, written

Contents = Callable[[PackedBatch], tuple[object, ...]]
MakeDrawn = Callable[..., Any]


# The same batches as of the shards


@pytest.mark.parametrize("store", ["images", "patches"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("num_streams", "algorithm"), [(1, "auto"), (3, "auto"), (3, "priced")])
def test_first_epoch_equals_that_of_the_shards(
    store: Any, shuffle: bool, num_streams: int, algorithm: Any, index: Index, tmp_path: Path, contents: Contents
) -> None:
    packing = PACKING.replace(token_drop=BetaDrop(0.4, 0.6), algorithm=algorithm)
    order: dict[str, Any] = {"shuffle": shuffle, "num_streams": num_streams, "seed": 5, "shuffle_window": 2}
    job = Job(
        source=index,
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
def test_each_stored_plan_equals_the_epoch_of_the_shards(
    name: str, store: Any, index: Index, tmp_path: Path, contents: Contents
) -> None:
    packing = CHANGING[name]
    order: dict[str, Any] = {"shuffle": True, "seed": 2, "block": 4 if name == "sizes" else None}
    job = Job(source=index, out=str(tmp_path / "out"), packing=packing, store=store, epochs=3, part_packs=3, **order)
    assert job.run()
    theirs = PackedImageLoader(index, packing, batch_size=4, **order)
    ours = PackedImageLoader(tmp_path / "out", batch_size=4, seed=2)
    for _ in range(3):
        assert list(map(contents, ours)) == list(map(contents, theirs))
    assert ours.stats()["skipped"] == theirs.stats()["skipped"]
    assert ours.stats()["images"] == theirs.stats()["images"]
    if name == "skip":
        assert theirs.stats()["skipped"]["oversize"] > 0
    # After the last plan the first repeats.
    fourth = [batch.grids for batch in ours]
    ours.set_epoch(0)
    again = [batch.grids for batch in ours]
    assert sorted(map(torch.Tensor.sum, fourth)) == sorted(map(torch.Tensor.sum, again))


def test_image_store_applies_a_transform_and_other_labels_on_reading(
    index: Index, tmp_path: Path, contents: Contents
) -> None:
    def noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        out: np.ndarray = image ^ rng.integers(0, 256, image.shape, np.uint8)
        return out

    def length(members: dict[str, bytes]) -> int:
        return len(members["txt"])

    Job(source=index, out=str(tmp_path / "out"), packing=PACKING, part_packs=4).run()
    given: dict[str, Any] = {"transform": noisy, "label": length, "extras": ["cls"], "seed": 8, "batch_size": 2}
    ours = PackedImageLoader(tmp_path / "out", **given)
    theirs = PackedImageLoader(index, PACKING, **given)
    for _ in range(2):
        assert list(map(contents, ours)) == list(map(contents, theirs))


def test_image_store_keeps_new_tokens_each_epoch_and_patch_store_the_same(index: Index, tmp_path: Path) -> None:
    packing = PACKING.replace(token_drop=ConstantDrop(0.5))
    kept: dict[Any, bool] = {"images": False, "patches": True}
    for store, kept_when_written in kept.items():
        out = tmp_path / store
        Job(source=index, out=str(out), packing=packing, store=store).run()
        loader = PackedImageLoader(out, batch_size=1)
        first, second = list(loader), list(loader)
        assert [batch.rows.tolist() for batch in first] == [batch.rows.tolist() for batch in second]
        assert [batch.lengths for batch in first] == [batch.lengths for batch in second]
        same = [torch.equal(a.coords, b.coords) for a, b in zip(first, second, strict=True)]
        assert all(same) == kept_when_written


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_packs_equal_uncompressed_ones(
    compression: str, index: Index, tmp_path: Path, contents: Contents
) -> None:
    for name, how in (("plain", None), ("packed", compression)):
        job = Job(
            source=index,
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


def test_targets_and_json_members_round_trip(
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
        Job(source=index, out=str(tmp_path / store), packing=PACKING, store=store, **given).run()
        ours = PackedImageLoader(tmp_path / store, batch_size=2)
        theirs = PackedImageLoader(index, PACKING, batch_size=2, **given)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.labels, b.labels) or torch.allclose(a.labels, b.labels, equal_nan=True)
            assert contents(a)[1:] == contents(b)[1:]
        assert ours.stats()["without_label"] == theirs.stats()["without_label"] == 4
        assert ours.num_classes == 2


# Bad images


def test_bad_images_are_counted_each_epoch_as_with_shards(
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
    decoded: dict[Any, int] = {"images": 0, "patches": 2}  # bad images that are found when packs are written
    for store, found in decoded.items():
        job = Job(source=index, out=str(tmp_path / store), packing=PACKING, store=store, label="cls", part_packs=3)
        job.run()
        ours = PackedImageLoader(tmp_path / store, batch_size=2)
        assert [list(map(contents, ours)) for _ in range(2)] == expected
        for what in ("images", "bad_images", "bad_by_stage", "skipped"):
            assert ours.stats()[what] == theirs.stats()[what]
        same = [[{**row, "shard": "", "offset": 0} for row in loader.stats()["bad"]] for loader in (ours, theirs)]
        assert same[0] == same[1]
        assert ours.stats()["images"] + ours.stats()["bad_images"] == 2 * len(index)
        manifest = json.loads((tmp_path / store / "manifest.json").read_bytes())
        assert manifest["counts"]["bad"] == found


def test_shard_with_changed_bytes_is_reported_when_it_is_packed(make_drawn: MakeDrawn, tmp_path: Path) -> None:
    drawn = make_drawn((10,))
    index = scan(drawn.shards)
    damaged = bytearray(Path(drawn.shards[0]).read_bytes())
    damaged[int(index.offset[4]) + 30] ^= 1
    times = Path(drawn.shards[0]).stat()
    Path(drawn.shards[0]).write_bytes(damaged)
    with pytest.raises(OSError, match="was modified after it was indexed"):
        Job(source=index, out=str(tmp_path / "a"), packing=PACKING).run()
    os.utime(drawn.shards[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    Job(source=index, out=str(tmp_path / "b"), packing=PACKING).run()
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_bytes())
    assert [bad["key"] for bad in manifest["bad"]] == [drawn.keys[4]]
    loader = PackedImageLoader(tmp_path / "b", batch_size=1)
    assert drawn.keys[4] not in keys_of(loader)
    assert loader.stats()["bad_by_stage"] == {"read": 1}


def test_more_bad_images_than_max_rate_raise_and_leave_no_manifest(
    write_tar: Any, encode_image: Any, draw_image: Any, tmp_path: Path
) -> None:
    data = encode_image(draw_image(16, 16), "PNG")
    members = [(f"{i:04d}.png", data if i % 50 else data[:-30]) for i in range(1200)]
    index = scan([write_tar(tmp_path / "a.tar", members)])
    given: dict[str, Any] = {"source": index, "packing": PACKING, "store": "patches", "part_packs": 20}
    with pytest.raises(BadDataError, match=r"24 of the 1200 images in all were bad, more than max_rate 0.01 allows"):
        Job(out=str(tmp_path / "out"), **given).run()
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(BadDataError, match=r"bad image .*'0000'.* on_error='skip'"):
        Job(out=str(tmp_path / "raise"), errors=ErrorPolicy(on_error="raise"), **given).run()
    # A run with a higher limit reuses finished parts: the limit does not affect the written bytes.
    assert Job(out=str(tmp_path / "out"), errors=ErrorPolicy(max_rate=0.03), **given).run()


# Mistakes


@pytest.mark.parametrize("name", [name for name in CHANGING if name != "skip"])
def test_packing_that_changes_grids_between_epochs_requires_epochs(name: str, index: Index, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a stored plan fixes them; .*--epochs E"):
        Job(source=index, out=str(tmp_path / "out"), packing=CHANGING[name], block=4)
    assert not (tmp_path / "out").exists()


def test_invalid_options_are_refused_before_anything_is_written(index: Index, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "file").write_text("")
    for changes, what in (
        ({"packing": CHANGING["sizes"], "epochs": 2}, r"give the packs per block: --block"),
        ({"store": "pixels"}, "store is 'pixels'; it must be 'images' or 'patches'"),
        ({"compression": "lz4"}, "compression is for store='patches'"),
        ({"store": "patches", "compression": "gzip"}, "compression is 'gzip'"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"part_packs": 0}, "part_packs is 0; it must be at least 1"),
        ({"label": len}, "it must be the name of a member"),
        ({"label": "none"}, "absent from all 60 samples"),
        ({"extras": ["none"]}, "extras asks for 'none'"),
        ({"out": "https://host/packs"}, "is a web server"),
        ({"out": str(tmp_path / "file")}, "is a file; name a folder"),
        ({"out": ""}, "the folder is ''; name a folder"),
    ):
        given: dict[str, Any] = {"source": index, "out": str(out), "packing": PACKING, **changes}
        with pytest.raises(ValueError, match=what):
            Job(**given)
        assert not out.exists()
    job = Job(source=index, out=str(out), packing=PACKING)
    for task, tasks in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=r"task is|num_tasks is"):
            job.run(task, tasks)


def test_folder_that_holds_something_else_is_refused_and_left_unchanged(index: Index, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds something else \('notes.txt'\); name an empty folder"):
        Job(source=index, out=str(out), packing=PACKING)
    assert written(out) == {"notes.txt": b"mine"}


def test_folder_of_other_packs_is_refused_and_left_unchanged(drawn: Any, index: Index, packed: Path) -> None:
    before = written(packed)
    given: dict[str, Any] = {"source": index, "out": str(packed), "packing": PACKING, "part_packs": 3, "label": "cls"}
    for changes, what in (
        ({"packing": PACKING.replace(seq_len=128)}, r"packing.seq_len is 128 here and 64 there"),
        ({"seed": 1}, "seed is 1 here and 0 there"),
        ({"store": "patches"}, "store is 'patches' here and 'images' there"),
        ({"source": scan(drawn.shards[:2])}, r"source.shards is \[.*\] here and"),
    ):
        with pytest.raises(ValueError, match=what):
            Job(**given | changes)
    assert Job(**given).run()
    assert written(packed) == before


def test_corrected_label_is_another_recipe(make_drawn: MakeDrawn, tmp_path: Path) -> None:
    drawn = make_drawn([6, 6])
    given: dict[str, Any] = {"out": str(tmp_path / "out"), "packing": PACKING, "label": "cls"}
    assert Job(source=scan(drawn.shards), **given).run()
    drawn.rewrite({"s1i002.cls": b"17"})
    with pytest.raises(ValueError, match=r"source.outside is '.*' here and '.*' there"):
        Job(source=scan(drawn.shards), **given)


@pytest.mark.parametrize(
    "packing", [PACKING, PACKING.replace(algorithm="priced"), *CHANGING.values()], ids=["plain", "priced", *CHANGING]
)
def test_recipes_round_trip_through_their_texts(packing: Packing, index: Index, tmp_path: Path) -> None:
    recipe = Job(source=index, out=str(tmp_path / "out"), packing=packing, epochs=2, block=4).recipe
    assert Recipe.from_plain(json.loads(recipe.to_json())) == recipe


def test_names_of_parts_sort_in_order() -> None:
    names = [unit_name(epoch, stream, n) for epoch in (0, 1, 11) for stream in (0, 2, 10) for n in (0, 9, 10**7)]
    assert names == sorted(names)


def test_location_of_the_shards_changes_no_byte(make_drawn: MakeDrawn, tmp_path: Path) -> None:
    drawn = make_drawn((12, 12))
    index = scan(drawn.shards)
    low, size = int(index.offset[7]), int(index.nbytes[7])
    half = Path(drawn.shards[0]).read_bytes()[low : low + size // 2]
    drawn.rewrite({f"{drawn.keys[3]}.png": b"no image", f"{drawn.keys[5]}.cls": None, f"{drawn.keys[7]}.png": half})
    (tmp_path / "moved").mkdir()
    moved = [shutil.copy(shard, tmp_path / "moved") for shard in drawn.shards]
    decodes: dict[Any, bool] = {"images": False, "patches": True}
    for store, finds_bad in decodes.items():
        for name, shards in (("a", drawn.shards), ("b", moved)):
            Job(source=scan(shards), out=str(tmp_path / store / name), packing=PACKING, store=store, label="cls").run()
        assert written(tmp_path / store / "a") == written(tmp_path / store / "b")
        counts = json.loads((tmp_path / store / "a" / "manifest.json").read_bytes())["counts"]
        assert (counts["bad"] > 0) == finds_bad


@pytest.mark.parametrize("store", ["images", "patches"])
def test_drops_that_follow_the_content_are_stored_as_they_are_loaded(
    store: Any, index: Index, tmp_path: Path, contents: Contents
) -> None:
    packing = PACKING.replace(token_drop=ComplexityDrop(0.2, 0.7, 0.5, 3), select="detail")
    job = Job(source=index, out=str(tmp_path / "out"), packing=packing, store=store, label="cls", part_packs=3)
    assert job.run()
    assert Recipe.from_plain(json.loads(job.recipe.to_json())).packing.select == "detail"
    theirs = list(PackedImageLoader(index, packing, batch_size=3, label="cls"))
    assert len({len(image.coords) / np.prod(image.grid) for batch in theirs for image in batch.images()}) > 5
    assert list(map(contents, PackedImageLoader(tmp_path / "out", batch_size=3))) == list(map(contents, theirs))
    others = PackedImageLoader(index, packing.replace(select="random"), batch_size=3, label="cls")
    assert list(map(contents, others)) != list(map(contents, theirs))
