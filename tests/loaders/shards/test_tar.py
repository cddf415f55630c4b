from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from patchnpack.loaders.shards.tar import TarSample, read_samples, read_tar

WriteTar = Callable[..., str]

BLOCK = 512


def contents(path: str, samples: list[TarSample]) -> list[tuple[str, dict[str, bytes]]]:
    """Key and members of each sample, with the bytes that lie where the sample says."""
    data = Path(path).read_bytes()
    return [(s.key, {e: data[at : at + n] for e, (at, n) in s.members.items()}) for s in samples]


def by_webdataset(path: str) -> list[tuple[str, dict[str, bytes]]]:
    """What webdataset itself makes of the shard."""
    with open(path, "rb") as stream:  # webdataset.WebDataset runs the same two, and leaves the file open
        samples = group_by_keys(tar_file_expander([{"url": path, "stream": stream}]))
        return [(s["__key__"], {e: v for e, v in s.items() if not e.startswith("__")}) for s in samples]


def test_samples_equal_webdataset_for_its_own_writer(tmp_path: Path) -> None:
    path = str(tmp_path / "a.tar")
    with webdataset.TarWriter(path) as writer:
        for i in range(20):
            sample = {
                "__key__": f"folder/{i:04d}",
                "jpg": bytes([i]) * (100 * i),
                "cls": i,
                "seg.png": b"png",
                "json": {"i": i},
            }
            writer.write(sample)
    ours = contents(path, read_samples(path))
    assert ours == by_webdataset(path)
    assert len(ours) == 20
    assert set(ours[0][1]) == {"jpg", "cls", "seg.png", "json"}


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.cls", "b.cls", "b.jpg"],
        ["x/a.jpg", "y/a.jpg"],
        ["./a.jpg", "./a.txt"],
        ["/abs/a.jpg"],
        ["x.d/a.jpg", "x.d/y.z/b.tar.gz"],
        ["A.JPG", "A.Txt", "a.jpg"],
        ["a.seg.png", "a.png", "a.0.1.2"],
        ["__meta__", "__x__/a.jpg", "a.jpg"],
        ["__a.jpg", "__a.cls", "x/__b__.jpg"],
        ["noextension", "x/noextension", "a.jpg"],
        ["a b.jpg", "ünïcode.jpg", "a-b_c+d.jpg"],
    ],
)
def test_key_and_extension_equal_webdataset(names: list[str], tmp_path: Path, write_tar: WriteTar) -> None:
    path = write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    assert contents(path, read_samples(path)) == by_webdataset(path)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_whole(format: int, tmp_path: Path, write_tar: WriteTar) -> None:
    names = [f"{'folder' * 30}/{'n' * 150}{i}.{e}" for i in range(3) for e in ("jpg", "cls")]
    path = write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names], format=format)
    ours = contents(path, read_samples(path))
    assert ours == by_webdataset(path)
    assert [key for key, _ in ours] == [f"{'folder' * 30}/{'n' * 150}{i}" for i in range(3)]


def test_members_of_a_sample_need_not_be_adjacent(tmp_path: Path, write_tar: WriteTar) -> None:
    names = ["a.jpg", "b.jpg", "a.cls", "c.txt", "b.cls", "a.txt"]
    path = write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    assert contents(path, read_samples(path)) == [
        ("a", {"jpg": b"a.jpg", "cls": b"a.cls", "txt": b"a.txt"}),
        ("b", {"jpg": b"b.jpg", "cls": b"b.cls"}),
        ("c", {"txt": b"c.txt"}),
    ]


def write_members(path: Path, *members: tuple[str, bytes | tuple[bytes, str]], format: int = tarfile.GNU_FORMAT) -> str:
    """Write a tar of files (name, bytes) and of other members (name, (type, linkname))."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
            else:
                info.type, info.linkname = what
                tar.addfile(info)
    return str(path)


LINK, SYMLINK = tarfile.LNKTYPE, tarfile.SYMTYPE


def test_folders_and_names_of_archives_are_skipped(tmp_path: Path) -> None:
    members: list[Any] = [("x.d", (tarfile.DIRTYPE, "")), ("label", (b"V", "")), ("x.e", (b"D", "")), ("a.jpg", b"abc")]
    path = write_members(tmp_path / "a.tar", *members)
    assert contents(path, read_samples(path)) == [("a", {"jpg": b"abc"})]
    assert read_tar(path).unnamed == []


def test_hard_links_of_tar_are_the_files_that_they_name(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "0.cls").write_text("3")
    (folder / "0.jpg").write_bytes(b"image")
    for name in ("1.cls", "2.cls"):
        os.link(folder / "0.cls", folder / name)
    for name in ("1.jpg", "2.jpg"):
        os.link(folder / "0.jpg", folder / name)
    path = str(tmp_path / "h.tar")
    subprocess.run(["tar", "-cf", path, "-C", str(folder), "."], check=True)
    with tarfile.open(path) as tar:
        assert sum(member.islnk() for member in tar) == 4
    samples = {"cls": b"3", "jpg": b"image"}
    assert sorted(contents(path, read_samples(path))) == [(f"./{i}", samples) for i in range(3)]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_hard_link_may_name_any_earlier_file(format: int, tmp_path: Path) -> None:
    long = "n" * 200
    path = write_members(
        tmp_path / "a.tar",
        *(("./blob", b"abc"), ("a.jpg", (LINK, "blob")), ("b.jpg", (LINK, "./a.jpg")), ("c.jpg", (LINK, "b.jpg"))),
        *((f"{long}.jpg", b"long"), ("d.jpg", (LINK, f"{long}.jpg")), ("d.jpg", (LINK, "d.jpg"))),
        format=format,
    )
    found = [(key, members["jpg"]) for key, members in contents(path, read_samples(path))]
    assert found == [("a", b"abc"), ("b", b"abc"), ("c", b"abc"), (long, b"long"), ("d", b"long")]


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        (LINK, "z.jpg", r"a hard link to 'z.jpg', which is no earlier file of this shard; .* `tar --hard-dereference`"),
        (LINK, "c.jpg", "a hard link to 'c.jpg', which is no earlier file"),  # a later one
        (LINK, "folder", "a hard link to 'folder', which is no earlier file"),
        (SYMLINK, "a.jpg", r"a symbolic link to 'a.jpg'; .* `tar --dereference --hard-dereference`"),
        (tarfile.CHRTYPE, "", "a character device; leave it out"),
        (tarfile.BLKTYPE, "", "a block device; leave it out"),
        (tarfile.FIFOTYPE, "", "a FIFO; leave it out"),
        (b"M", "", "a member of type b'M'; leave it out"),
    ],
)
@pytest.mark.parametrize("name", ["b.jpg", "README", "__meta__"])
def test_member_without_bytes_of_its_own_is_refused_by_name(
    name: str, kind: bytes, target: str, message: str, tmp_path: Path
) -> None:
    before = ("a.jpg", b"abc"), ("folder", (tarfile.DIRTYPE, ""))
    path = write_members(tmp_path / "a.tar", *before, (name, (kind, target)), ("c.jpg", b"c"))
    with pytest.raises(ValueError, match=rf"shard '.*a.tar' holds '{name}' as {message}"):
        read_samples(path)


@given(
    names=st.lists(
        st.builds(
            "".join,
            st.lists(st.sampled_from(["a", "b", ".", "/", "jpg", "__", "\n", "..", " ", "é"]), min_size=1, max_size=6),
        ),
        unique=True,
        max_size=8,
    )
)
@settings(max_examples=200, deadline=None)
def test_every_file_is_a_member_of_one_sample(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Under webdataset's rule where it has one, else by itself."""
    names = [name for name in names if not name.endswith("/")]
    path = write_members(tmp_path_factory.mktemp("t") / "a.tar", *((name, name.encode()) for name in names))
    try:
        shard = read_tar(path)
    except ValueError:  # "a.jpg" and "a.JPG"
        return
    found = [data for _, members in contents(path, [*shard.samples, *shard.unnamed]) for data in members.values()]
    assert sorted(found) == sorted(name.encode() for name in names)
    assert {f"{sample.key}.{extension}" for sample in shard.samples for extension in sample.members} <= set(names)


def test_newline_in_a_folder_is_part_of_the_key(tmp_path: Path) -> None:
    path = write_members(tmp_path / "a.tar", ("x\ny/a.jpg", b"1"), ("x\ny/a.cls", b"2"))
    assert contents(path, read_samples(path)) == [("x\ny/a", {"jpg": b"1", "cls": b"2"})]


@pytest.mark.parametrize("names", [["a.jpg", "a.jpg"], ["a.jpg", "b.jpg", "a.jpg"], ["a.jpg", "a.JPG"]])
def test_duplicate_member_is_refused_by_name(names: list[str], tmp_path: Path, write_tar: WriteTar) -> None:
    path = write_tar(tmp_path / "a.tar", [(name, b"x") for name in names])
    with pytest.raises(ValueError, match=f"a.tar' holds '{names[-1]}' twice; give each member its own name"):
        read_samples(path)


def test_tar_without_members_has_no_samples(tmp_path: Path, write_tar: WriteTar) -> None:
    assert read_samples(write_tar(tmp_path / "a.tar", [])) == []


@pytest.mark.parametrize("data", [b"", b"short", bytes(100), b"not a tar" * 1000])
def test_file_that_is_not_a_tar_is_refused_by_name(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard '.*a.tar' cannot be read as an uncompressed tar"):
        read_samples(str(path))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
def test_image_in_place_of_a_shard_is_named_as_one(format: str, tmp_path: Path) -> None:
    path = tmp_path / "im00"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path, format)
    with pytest.raises(
        ValueError, match=r"im00' is an image, not a shard: give the folder .*`patchnpack shard FOLDER -o SHARDS`"
    ):
        read_samples(str(path))


def test_webp_in_place_of_a_shard_is_named_as_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(b"RIFF" + (1000).to_bytes(4, "little") + b"WEBPVP8 " + b"x" * 992)
    with pytest.raises(ValueError, match=r"a.webp' is an image, not a shard"):
        read_samples(str(path))


def test_zip_archive_in_place_of_a_shard_is_named_as_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x" * 1000)
    with pytest.raises(ValueError, match=r"checkpoint.pt' is a zip archive, as checkpoints \(.pt\) are, not a shard"):
        read_samples(str(path))


def test_damaged_tar_is_named_as_a_tar_whatever_its_first_member(tmp_path: Path, write_tar: WriteTar) -> None:
    path = Path(write_tar(tmp_path / "a.tar", [("BM.jpg", b"x" * 1000)]))
    data = bytearray(path.read_bytes())
    data[148:156] = b"damaged\0"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard '.*a.tar' cannot be read as an uncompressed tar"):
        read_samples(str(path))


@pytest.mark.parametrize(
    ("kind", "command", "compress"),
    [
        ("gzip", "gunzip", gzip.compress),
        ("bzip2", "bunzip2", bz2.compress),
        ("xz", "unxz", lzma.compress),
        ("zstd", "unzstd", lambda data: pa.compress(data, codec="zstd", asbytes=True)),
    ],
)
def test_compressed_tar_is_refused(
    kind: str, command: str, compress: Callable[[bytes], bytes], tmp_path: Path, write_tar: WriteTar
) -> None:
    path = Path(write_tar(tmp_path / "a.tar", [("a.jpg", b"x" * 1000)]))
    path.write_bytes(compress(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"a.tar' is compressed with {kind}, .*; {command} it"):
        read_samples(str(path))


def test_concatenated_tars_are_refused(tmp_path: Path, write_tar: WriteTar) -> None:
    first = Path(write_tar(tmp_path / "a.tar", [("a.jpg", b"a")]))
    second = Path(write_tar(tmp_path / "b.tar", [("b.jpg", b"b")]))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(ValueError, match="concatenated from several tars"):
        read_samples(str(first))


def test_partly_copied_tar_of_full_size_is_refused(tmp_path: Path, write_tar: WriteTar) -> None:
    """As of a download into a file that was made at its full size before."""
    path = Path(write_tar(tmp_path / "a.tar", [(f"{i}.jpg", bytes(300_000)) for i in range(8)]))
    whole = path.read_bytes()
    path.write_bytes(whole[: 2 * 300_544] + bytes(len(whole) - 2 * 300_544))
    with pytest.raises(ValueError, match="copied in part"):
        read_samples(str(path))


def test_sparse_member_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header) + bytes(10 * BLOCK))
    with pytest.raises(ValueError, match=r"'a.jpg' as a sparse file"):
        read_samples(str(path))


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_file_of_gnu_tar_is_refused(version: str, tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    options = ["--sparse", "--format=pax", f"--sparse-version={version}"]
    path = str(tmp_path / "a.tar")
    subprocess.run(["tar", *options, "-cf", path, "-C", str(tmp_path), "a.jpg"], check=True)
    with pytest.raises(ValueError, match=r"'a.jpg' as a sparse file; write it as a plain file"):
        read_samples(path)


def test_member_of_negative_size_is_refused(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512, in tar's binary notation
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header) + bytes(10 * BLOCK))
    with pytest.raises(ValueError, match=r"'a.jpg' as a file of -512 bytes"):
        read_samples(str(path))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_cut_anywhere_gives_every_sample_or_an_error(format: int, tmp_path: Path, write_tar: WriteTar) -> None:
    long = "n" * (60 if format == tarfile.USTAR_FORMAT else 130)
    members = [
        ("a.jpg", b"j" * 700),
        (f"{long}.jpg", b"l" * 512),
        ("a.cls", b"3"),
        ("b.jpg", b""),
        ("b.cls", b"4" * 1025),
    ]
    whole = Path(write_tar(tmp_path / "whole.tar", members, format=format)).read_bytes()
    expected = contents(str(tmp_path / "whole.tar"), read_samples(str(tmp_path / "whole.tar")))
    path, complete = tmp_path / "cut.tar", 0
    for edge in range(0, len(whole) + 1, BLOCK):
        for at in (edge - 1, edge, edge + 1):
            if not 0 <= at < len(whole):
                continue
            path.write_bytes(whole[:at])
            try:
                samples = read_samples(str(path))
            except ValueError as error:
                message = str(error)
                complete = 0
            else:
                message = "cut.tar"
                complete += 1
                assert contents(str(path), samples) == expected, at
            assert "cut.tar" in message, at
    assert complete > 3  # only the padding behind the end marker may be missing


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_seeded_damage_gives_every_sample_or_a_value_error(format: int, tmp_path: Path, write_tar: WriteTar) -> None:
    members = [(f"{c * 110}.{e}", c.encode() * 300) for c in "abc" for e in ("jpg", "cls")]
    whole = Path(write_tar(tmp_path / "whole.tar", members, format=format)).read_bytes()
    used = len(whole.rstrip(b"\0"))
    path, rng, refused = tmp_path / "damaged.tar", np.random.default_rng(7), 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 3))):
            at = int(rng.integers(used))
            data[at] = int(rng.integers(256)) if rng.random() < 0.5 else data[at] ^ 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            # A name in an extended header has no checksum: the sample is there under another one.
            assert sum(len(s.members) for s in read_samples(str(path))) >= len(members) - 2
        except ValueError as error:
            refused += "damaged.tar" in str(error)
    assert refused > 50


def test_clothing_shards_equal_webdataset(clothing: str) -> None:
    path = f"{clothing}/train-000009.tar"
    assert contents(path, read_samples(path)) == by_webdataset(path)
