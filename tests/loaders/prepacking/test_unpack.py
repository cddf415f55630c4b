from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from patchnpack.loaders import PackedImageLoader, scan
from patchnpack.loaders.prepacking import unpack as unpack_module
from patchnpack.loaders.prepacking.job import Job
from patchnpack.loaders.prepacking.unpack import Unpacked, _tar, unpack
from patchnpack.loaders.shards.keys import escape_key
from patchnpack.loaders.shards.tar import read_samples
from patchnpack.packer import ConstantDrop, Packing, PatchSizes

ODD_KEYS = [
    *("a", "a.b", "a_b", "a.c.d", ".hidden", "__x__", "__x__/a", "__x___/a", "____/a", "x.y/z", "..", ".", "../../up"),
    *(
        "/root",
        "",
        "/",
        "a//b",
        "n\nl/n\nl",
        "z\0z",
        "é" * 300,
        "k" * 150,
        "a/" * 60 + "b",
        "tail.",
        " . ",
        "日本",
        "a\\b",
    ),
]
PACKING = Packing(seq_len=64, patch_size=8, max_images=7)


def samples(shards: list[Path] | list[str]) -> dict[str, dict[str, bytes]]:
    """Return the members by key and extension."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for info in tar:
                key, _, extension = info.name.partition(".")
                file = tar.extractfile(info)
                assert file is not None
                assert extension not in found.setdefault(key, {})
                found[key][extension] = file.read()
    return found


@pytest.mark.parametrize("num_streams", [1, 2])
def test_image_store_unpacks_every_member_byte_for_byte(num_streams: int, drawn: Any, tmp_path: Path) -> None:
    job = Job(
        source=scan(drawn.shards),
        out=str(tmp_path / "packs"),
        packing=PACKING,
        shuffle=True,
        part_packs=3,
        num_streams=num_streams,
    )
    job.run()
    seen: list[tuple[int, int]] = []
    assert (
        unpack(tmp_path / "packs", tmp_path / "shards", images_per_shard=25, progress=lambda *at: seen.append(at)) == 60
    )
    assert seen == [(25, 60), (50, 60), (60, 60)]
    shards = sorted((tmp_path / "shards").glob("*.tar"))
    assert [shard.name for shard in shards] == [f"images-{i:06d}.tar" for i in range(3)]
    assert samples(shards) == samples(drawn.shards)
    # The unpacked shards load like any others.
    assert sorted(scan(list(map(str, shards))).keys) == sorted(drawn.keys)


@pytest.mark.parametrize("sizes", [False, True])
def test_patch_store_unpacks_pixels_labels_and_extras(sizes: bool, drawn: Any, tmp_path: Path) -> None:
    packing = PACKING.replace(patch_size=PatchSizes((4, 8)) if sizes else 8, token_drop=ConstantDrop(0.25))
    given: dict[str, Any] = {"epochs": 2, "block": 4} if sizes else {"num_streams": 2}
    Job(
        source=scan(drawn.shards),
        out=str(tmp_path / "packs"),
        packing=packing,
        store="patches",
        label="cls",
        extras=["txt"],
        part_packs=3,
        **given,
    ).run()
    assert unpack(tmp_path / "packs", tmp_path / "shards") == 60
    found = samples(sorted((tmp_path / "shards").glob("*.tar")))
    assert sorted(found) == sorted(drawn.keys)
    for batch in PackedImageLoader(tmp_path / "packs", batch_size=2):
        for image in batch.images():
            members = found[image.key]
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(members["png"]))), image.pixels())
            assert members["cls"] == str(drawn.labels[image.key]).encode()
            assert members["txt"] == drawn.texts[image.key].encode()
            assert set(members) == {"png", "cls", "txt"}


def test_rerun_writes_missing_shards_with_the_same_bytes(drawn: Any, tmp_path: Path) -> None:
    Job(source=scan(drawn.shards), out=str(tmp_path / "packs"), packing=PACKING).run()
    out = tmp_path / "shards"
    unpack(tmp_path / "packs", out, images_per_shard=20)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "images-000001.tar").unlink()
    times = (out / "images-000000.tar").stat().st_mtime_ns
    unpack(tmp_path / "packs", out, images_per_shard=20)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert (out / "images-000000.tar").stat().st_mtime_ns == times


def test_repeated_key_starts_a_new_shard(write_tar: Any, encode_image: Any, draw_image: Any, tmp_path: Path) -> None:
    shards = []
    for s in range(2):
        members = [(f"{i}.png", encode_image(draw_image(20, 20, seed=10 * s + i), "PNG")) for i in range(3)]
        shards.append(write_tar(tmp_path / f"{s}.tar", members))
    Job(source=scan(shards), out=str(tmp_path / "packs"), packing=PACKING).run()
    unpack(tmp_path / "packs", tmp_path / "shards")
    unpacked = sorted((tmp_path / "shards").glob("*.tar"))
    assert [samples([shard]) for shard in unpacked] == [samples([shard]) for shard in shards]


def test_folders_that_hold_something_else_are_refused(drawn: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        Job(source=scan(drawn.shards), out=str(tmp_path / name), packing=PACKING, seed=seed).run()
    out = tmp_path / "shards"
    unpack(tmp_path / "a", out)
    with pytest.raises(ValueError, match="holds shards unpacked from other packs; name an empty folder"):
        unpack(tmp_path / "b", out)
    with pytest.raises(ValueError, match="holds shards unpacked from other packs"):
        unpack(tmp_path / "a", out, images_per_shard=7)
    with pytest.raises(ValueError, match=r"holds something else .*; name an empty folder"):
        unpack(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="images_per_shard is 0"):
        unpack(tmp_path / "a", tmp_path / "c", images_per_shard=0)


def test_shard_ends_once_it_holds_too_many_bytes_for_memory(
    drawn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Job(source=scan(drawn.shards), out=str(tmp_path / "packs"), packing=PACKING).run()
    monkeypatch.setattr(unpack_module, "_SHARD_BYTES", 5000)
    assert unpack(tmp_path / "packs", tmp_path / "shards") == 60
    found = [samples([shard]) for shard in sorted((tmp_path / "shards").glob("*.tar"))]
    assert len(found) > 3
    for shard in found:
        sizes = [sum(map(len, members.values())) for members in shard.values()]
        assert sum(sizes) - max(sizes) < 5000
    assert {key: members for shard in found for key, members in shard.items()} == samples(drawn.shards)


# Keys and names that are no names of files


@pytest.mark.parametrize("store", ["images", "patches"])
def test_keys_that_cannot_be_names_of_files_survive_packing_and_unpacking(
    store: Any, encode_image: Any, draw_image: Any, tmp_path: Path
) -> None:
    images = [encode_image(draw_image(20, 20, seed=i), "PNG") for i in range(len(ODD_KEYS))]
    columns = {"__key__": ODD_KEYS, "image": images, "image/class": range(len(ODD_KEYS)), "x__": ["t"] * len(ODD_KEYS)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    index = scan(tmp_path / "a.parquet")
    assert list(index.keys) == ODD_KEYS
    out = str(tmp_path / "packs")
    Job(source=index, out=out, packing=PACKING, store=store, label="image/class", extras=["x__"]).run()
    assert unpack(out, tmp_path / "shards") == len(ODD_KEYS)
    shards = [str(shard) for shard in (tmp_path / "shards").glob("*.tar")]
    assert len(shards) == 1
    with tarfile.open(shards[0]) as tar:
        tar.extractall(tmp_path / "out" / "below", filter="data")
    assert len(list((tmp_path / "out" / "below").rglob("*.x_"))) == len(ODD_KEYS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["below"]
    unpacked = scan(shards, image="image;png")
    assert sorted(unpacked.keys) == sorted(ODD_KEYS)
    label, cache = "image/class" if store == "images" else "cls", tmp_path / "cache"
    loader = PackedImageLoader(unpacked, PACKING, batch_size=1, label=label, extras=["x__"], cache_dir=cache)
    labels = {image.key: int(image.label) for batch in loader for image in batch.images()}
    assert labels == {key: number for number, key in enumerate(ODD_KEYS)}


def test_members_that_differ_in_case_are_unpacked_each(tmp_path: Path, encode_image: Any, draw_image: Any) -> None:
    columns = {
        "image": [encode_image(draw_image(20, 20), "PNG")],
        "label": [1],
        "Label": ["x"],
        "a/b": ["s"],
        "a_b": ["u"],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    Job(source=scan(tmp_path / "a.parquet"), out=str(tmp_path / "packs"), packing=PACKING).run()
    unpack(tmp_path / "packs", tmp_path / "shards")
    index = scan(str(tmp_path / "shards" / "*.tar"), image="image")
    assert set(index.members) == {"image", "label", "Label", "a/b", "a_b"}


_KEYS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        st.text("a._/\n\0~", max_size=8),
        st.sampled_from(ODD_KEYS),
        st.text("é/", min_size=60, max_size=400),
    ),
    min_size=1,
    max_size=12,
    unique=True,
)
_MEMBERS = st.lists(st.one_of(st.sampled_from(["png", "cls", "a_b"]), st.text("aA._/\0é", max_size=60)), max_size=4)


@settings(deadline=None)
@given(_KEYS, _MEMBERS)
@example(["a.b", "a_b", "a_b_2", "a.b_2"], ["x", "X", "x_2"])
def test_any_keys_and_members_are_read_back_from_unpacked_shards(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], names: list[str]
) -> None:
    names = list(dict.fromkeys(names or ["png"]))
    wanted = {key: {name: f"{i} {j}".encode() for j, name in enumerate(names)} for i, key in enumerate(keys)}
    data = _tar([Unpacked(key, list(members.items())) for key, members in wanted.items()])
    folder = tmp_path_factory.mktemp("tar")
    (folder / "a.tar").write_bytes(data)
    found = read_samples(str(folder / "a.tar"))
    assert {
        sample.key: {name: data[at : at + size] for name, (at, size) in sample.members.items()} for sample in found
    } == wanted
    with tarfile.open(folder / "a.tar") as tar:
        members = tar.getnames()
    assert len(set(members)) == len(members) == len(keys) * len(names)
    parts = [part for name in members for part in name.split("/")]
    assert all(part and part not in (".", "..") and len(part.encode()) <= 255 for part in parts)
    assert not any(character < " " for part in parts for character in part)
    streams = [{"url": "a.tar", "stream": io.BytesIO(data)}]
    assert len(list(group_by_keys(tar_file_expander(streams)))) == len(keys)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_escaped_keys_are_escaped_to_themselves(key: str) -> None:
    escaped = escape_key(key)
    assert escape_key(escaped) == escaped
    assert all(part and part not in (".", "..") and len(part.encode()) <= 200 for part in escaped.split("/"))
