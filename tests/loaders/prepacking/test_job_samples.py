"""Packed folders whose samples hold several images: pages, frames and views."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from patchnpack.loaders import ErrorPolicy, Job, PackedImageLoader, open_index
from patchnpack.loaders.packs.folder import PackedFolder
from patchnpack.loaders.prepacking.unpack import unpack
from patchnpack.loaders.prepacking.verify import _samples, verify
from patchnpack.packer import ConstantDrop, FitTokens, Frames, PackedBatch, Packing, RandomResizedCrop, Views
from tests.images import read_tar, write_tar
from tests.loaders.prepacking.documents import PACKING, RULES, pages_of, samples_in, write_documents

Contents = Callable[[PackedBatch], tuple[object, ...]]
STORES = ["images", "patches"]
COUNT = 24


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("documents")
    return {name: write_documents(folder / name, name, COUNT) for name in RULES}


def packed(out: Path, shards: list[str], rule: str, packing: Packing = PACKING, **options: Any) -> str:
    given: dict[str, Any] = {"label": "cls", "extras": ["json"], "seed": 3, "part_packs": 4} | options
    Job(source=shards, sample=RULES[rule], out=str(out), packing=packing, **given).run()
    assert verify(out).problems == []
    return str(out)


def loaders(
    source: list[str], out: str, rule: str, packing: Packing = PACKING, **options: Any
) -> tuple[PackedImageLoader, PackedImageLoader]:
    """Return the loader of the source and that of the packed folder."""
    given: dict[str, Any] = {"batch_size": 1, "seed": 3} | options
    read: dict[str, Any] = {"label": "cls", "extras": ["json"], "sample": RULES[rule]}
    return PackedImageLoader(source, packing, **given, **read), PackedImageLoader(out, **given)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"token_drop": ConstantDrop(0.3), "resolution": FitTokens(12), "scope": "sample"}, {"num_streams": 2}),
        ({"algorithm": "best_fit_decreasing", "oversize": "drop", "seq_len": 40}, {}),
        ({"frames": Frames(2), "seq_len": 48}, {}),
        ({"frames": Frames(2, "random", short="skip")}, {"epochs": 2}),
        ({"frames": Frames(4, short="repeat"), "oversize": "skip", "seq_len": 64}, {"epochs": 2}),
    ],
    ids=["plain", "drop", "oversize", "frames", "random", "repeat"],
)
def test_the_packed_folder_gives_the_batches_of_the_source(
    shards: Any, tmp_path: Path, contents: Contents, rule: str, store: Any, changes: Any, options: Any
) -> None:
    packing = PACKING.replace(**changes)
    out = packed(tmp_path / "out", shards[rule], rule, packing, store=store, **options)
    streams = options.get("num_streams", 1)
    source, folder = loaders(shards[rule], out, rule, packing, batch_size=2, num_streams=streams)
    for _ in range(options.get("epochs", 1)):
        expected = list(source)
        assert len(expected) > 2
        assert list(map(contents, folder)) == list(map(contents, expected))
    counts = ("samples", "images", "bad_images", "bad_samples", "left_out", "skipped", "oversize", "multi_page")
    stats = [loader.stats() for loader in (source, folder)]
    assert [stats[0][name] for name in counts] == [stats[1][name] for name in counts]
    assert stats[0]["attention_cost"] == stats[1]["attention_cost"]


@pytest.mark.parametrize("store", STORES)
def test_views_are_stored_with_one_copy_of_each_file(
    shards: Any, tmp_path: Path, contents: Contents, store: Any
) -> None:
    views = Views(
        (2, RandomResizedCrop(scale=(0.5, 1), max_tokens=8)), (2, RandomResizedCrop(scale=(0.1, 0.3), max_tokens=2))
    )
    packing = PACKING.replace(views=views, seq_len=128, max_images=32)
    out = packed(tmp_path / "out", shards["members"], "members", packing, store=store, epochs=2)
    source, folder = loaders(shards["members"], out, "members", packing)
    for _ in range(2):
        assert list(map(contents, folder)) == list(map(contents, source))
    alone = PackedImageLoader(shards["key"], packing, batch_size=1, label="cls", seed=3)
    Job(
        source=shards["key"], out=str(tmp_path / "alone"), packing=packing, store=store, label="cls", seed=3, epochs=1
    ).run()
    assert list(map(contents, PackedImageLoader(tmp_path / "alone", batch_size=1))) == list(map(contents, alone))
    if store == "images":
        assert sorted(stored_images(out)) == sorted(images_in(shards["members"]))
        assert sorted(stored_images(tmp_path / "alone")) == sorted(images_in(shards["key"]))


def stored_images(out: Any) -> list[bytes]:
    """Return the encoded images in the parts of an image store."""
    found: list[bytes] = []
    for part in sorted(Path(out).glob("parts/*.arrow")):
        with pa.ipc.open_file(pa.py_buffer(part.read_bytes())) as file:
            packs = file.get_batch(0).column("image").to_pylist()
        found += [data for pack in packs for data in pack if data is not None]
    return found


def images_in(shards: list[str]) -> list[bytes]:
    """Return the images in tar shards."""
    return [data for shard in shards for name, data in read_tar(shard) if name.endswith((".png", ".tiff"))]


@pytest.mark.parametrize("frames", [None, Frames(1), Frames(2, "random")])
def test_an_image_store_keeps_each_file_once_whichever_frames_are_used(
    shards: Any, tmp_path: Path, frames: Frames | None
) -> None:
    epochs = None if frames is None or not frames.draws else 2
    out = packed(tmp_path / "out", shards["members"], "members", PACKING.replace(frames=frames), epochs=epochs)
    assert sorted(stored_images(out)) == sorted(images_in(shards["members"]))


def test_members_that_the_pages_of_a_sample_share_are_stored_once(shards: Any, tmp_path: Path) -> None:
    out = packed(tmp_path / "out", shards["members"], "members")
    for part in Path(out).glob("parts/*.arrow"):
        with pa.ipc.open_file(pa.py_buffer(part.read_bytes())) as file:
            batch = file.get_batch(0)
        for pack, frames in zip(batch.column("member.cls").to_pylist(), batch.column("frame").to_pylist(), strict=True):
            assert len([label for label in pack if label is not None]) == frames.count(0)


@pytest.mark.parametrize("store", STORES)
def test_threads_and_ranks_share_the_packs_of_whole_samples(
    shards: Any, tmp_path: Path, contents: Contents, store: Any
) -> None:
    out = packed(tmp_path / "out", shards["members"], "members", store=store)
    one = list(map(contents, PackedImageLoader(out, batch_size=1, num_threads=1)))
    assert one == list(map(contents, PackedImageLoader(out, batch_size=1, num_threads=4)))
    whole = sorted(samples_in(PackedImageLoader(out, batch_size=1)))
    assert whole == sorted([(f"doc{n}", i, n) for i in range(pages_of(n))] for n in range(COUNT))
    for world in (2, 3):
        batches = [PackedImageLoader(out, batch_size=1, rank=r, world_size=world, shuffle=True) for r in range(world)]
        assert sorted(sample for rank in batches for sample in samples_in(rank)) == whole


@pytest.mark.parametrize("store", STORES)
def test_a_loader_of_packed_samples_resumes_at_each_step_on_other_ranks(
    shards: Any, tmp_path: Path, store: Any
) -> None:
    out = packed(tmp_path / "out", shards["members"], "members", store=store)

    def fresh(rank: int = 0, world: int = 1, size: int = 2) -> PackedImageLoader:
        return PackedImageLoader(out, batch_size=size, shuffle=True, block=2, rank=rank, world_size=world)

    whole = samples_in(fresh())
    steps = len(fresh())
    assert steps > 3
    for step in range(1, steps):
        first = fresh()
        before = samples_in(islice(first, step))
        after = []
        for rank in range(2):
            other = fresh(rank, 2, 1)
            other.load_state_dict(first.state_dict(after=None))
            after.append(list(other))
        joined = samples_in(batch for both in zip(*after, strict=True) for batch in both)
        assert before + joined == whole


@pytest.mark.parametrize("on_bad", ["sample", "image"])
@pytest.mark.parametrize("store", STORES)
def test_a_corrupt_page_is_recorded_and_left_out_as_by_the_source(
    tmp_path: Path, contents: Contents, store: Any, on_bad: Any
) -> None:
    corrupt = ((1, 0), (7, 4), (13, 1))
    shards = write_documents(tmp_path / "shards", "members", COUNT, corrupt=corrupt)
    errors = ErrorPolicy(on_bad=on_bad, quarantine=tmp_path / "bad.jsonl")
    out = packed(tmp_path / "out", shards, "members", store=store, errors=errors)
    source, folder = loaders(shards, out, "members", errors=errors)
    assert list(map(contents, folder)) == list(map(contents, source))
    stats = [loader.stats() for loader in (source, folder)]
    for name in ("samples", "images", "bad_images", "bad_samples", "left_out"):
        assert stats[0][name] == stats[1][name], name
    total = sum(map(pages_of, range(COUNT)))
    assert stats[1]["images"] + stats[1]["bad_images"] + stats[1]["left_out"] == total
    assert stats[1]["samples"] + stats[1]["bad_samples"] == COUNT
    if store == "patches":
        lines = (tmp_path / "bad.jsonl").read_text().splitlines()
        assert len(lines) == 2 * len(corrupt)


@pytest.mark.parametrize("on_bad", ["sample", "image"])
def test_a_page_with_a_bad_header_is_left_out_of_the_folder(tmp_path: Path, contents: Contents, on_bad: Any) -> None:
    shards = write_documents(tmp_path / "shards", "key", COUNT)
    members = read_tar(shards[1])

    broken = [(name, b"no image" if name in ("doc9_1.png", "doc12_0.png") else data) for name, data in members]
    write_tar(Path(shards[1]), broken)
    errors = ErrorPolicy(on_bad=on_bad)
    out = packed(tmp_path / "out", shards, "key", errors=errors)
    source, folder = loaders(shards, out, "key", errors=errors)
    assert list(map(contents, folder)) == list(map(contents, source))
    stats = [loader.stats() for loader in (source, folder)]
    for name in ("samples", "images", "bad_images", "bad_samples", "left_out"):
        assert stats[0][name] == stats[1][name], name


@pytest.mark.parametrize("rule", RULES)
def test_unpacked_samples_are_whole_and_in_order(shards: Any, tmp_path: Path, rule: str) -> None:
    out = packed(tmp_path / "out", shards[rule], rule, PACKING.replace(frames=Frames(2)))
    images = unpack(out, tmp_path / "again", images_per_shard=20)
    again = sorted(str(path) for path in (tmp_path / "again").glob("*.tar"))
    assert images == len(images_in(shards[rule]))
    assert len(again) > 2
    members = {name: data for shard in shards[rule] for name, data in read_tar(shard)}
    assert {name: data for shard in again for name, data in read_tar(shard)} == members
    whole = sorted([f"doc{n}"] * pages_of(n) for n in range(COUNT))
    found = samples_in(PackedImageLoader(again, PACKING, batch_size=1, sample=RULES[rule], label="cls"))
    assert sorted([key.partition("_")[0] for key, _, _ in sample] for sample in found) == whole
    assert all([frame for _, frame, _ in sample] == list(range(len(sample))) for sample in found)


@pytest.mark.parametrize("rule", RULES)
def test_unpacked_samples_of_a_patch_store_are_pictures_in_order(shards: Any, tmp_path: Path, rule: str) -> None:
    out = packed(tmp_path / "out", shards[rule], rule, store="patches")
    unpack(out, tmp_path / "again", images_per_shard=20)
    again = sorted(str(path) for path in (tmp_path / "again").glob("*.tar"))
    given: dict[str, Any] = {"batch_size": 1, "label": "cls", "extras": ["json"]}
    before = {s[0][2]: s for s in samples_in(PackedImageLoader(out, **given))}
    loader = PackedImageLoader(again, PACKING, sample=RULES[rule], **given)
    batches = list(loader)
    assert {s[0][2]: s for s in samples_in(batches)} == before
    pixels = {
        (int(image.label), int(frame)): image.pixels()
        for loaded in (batches, list(PackedImageLoader(out, **given)))
        for batch in loaded
        for image, frame in zip(batch.images(), batch.frames[batch.image_mask], strict=True)
    }
    for batch in batches:
        for image, frame in zip(batch.images(), batch.frames[batch.image_mask], strict=True):
            assert np.array_equal(image.pixels(), pixels[int(image.label), int(frame)])


def test_the_rule_is_part_of_the_recipe(shards: Any, tmp_path: Path) -> None:
    packed(tmp_path / "out", shards["key"], "key")
    with pytest.raises(
        ValueError, match=r"holds other packs: .*sample is None here and 'key:\(\.\+\)_\\\\\\\\d\+' there|differ|digest"
    ):
        Job(source=shards["key"], out=str(tmp_path / "out"), packing=PACKING, label="cls", seed=3, part_packs=4)


def test_an_index_brings_its_rule(shards: Any, tmp_path: Path) -> None:
    index = open_index(shards["members"], sample="members")
    Job(source=index, out=str(tmp_path / "out"), packing=PACKING).run()
    assert len(samples_in(PackedImageLoader(tmp_path / "out", batch_size=1))) == COUNT


def test_a_rule_cannot_be_given_for_packs_that_are_made(shards: Any, tmp_path: Path) -> None:
    out = packed(tmp_path / "out", shards["key"], "key")
    with pytest.raises(ValueError, match="sample= cannot be given for the packs in"):
        PackedImageLoader(out, batch_size=1, sample="members")


def test_verify_notices_samples_that_are_split_or_mixed_up(shards: Any, tmp_path: Path) -> None:

    out = packed(tmp_path / "out", shards["members"], "members")
    folder = PackedFolder.open(out)
    arrays, starts = dict(folder.plan(0, 0)), folder.index.samples.starts  # type: ignore[union-attr]

    def problems(**changes: np.ndarray) -> int:
        found: list[str] = []
        _samples(arrays | changes, starts, "plan", found)
        return len(found)

    assert problems() == 0
    inside = np.flatnonzero(arrays["frame"] > 0)[0]
    offsets, row, frame = (np.array(arrays[name]) for name in ("offsets", "row", "frame"))
    offsets[1] = inside
    row[inside] = row[-1]
    frame[inside] = 3
    assert (problems(offsets=offsets), problems(row=row), problems(frame=frame)) == (1, 1, 1)
