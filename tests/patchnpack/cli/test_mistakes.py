"""What users get wrong on the command line: one line that names the value and a fix in flags, and exit code 2."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from patchnpack.cli import main as cli
from patchnpack.cli.errors import message_of
from tests.images import draw_image, encode_image, write_tar

DEEP = encode_image(np.arange(32 * 24, dtype=np.uint16).reshape(24, 32), "PNG")
JPEG = encode_image(draw_image(32, 24))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with shards, a folder of images, and dangling links."""
    monkeypatch.chdir(tmp_path)
    write_tar(
        tmp_path / "a.tar", [(f"{i}.{ext}", data) for i in range(3) for ext, data in (("jpg", JPEG), ("cls", b"1"))]
    )
    write_tar(tmp_path / "deep.tar", [(f"{i}.png", DEEP) for i in range(3)])
    for folder in ("images", "linked", "empty"):
        (tmp_path / folder).mkdir()
    for folder in ("images", "linked"):
        (tmp_path / folder / "0.jpg").write_bytes(JPEG)
    os.symlink("/absent/1.jpg", "linked/1.jpg")
    os.symlink("/absent", "dead")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            "report deep.tar",
            "none of the 3 images can be used: 3 are bad, 0 filtered out by where; the first is '0' in '",
        ),
        ("report deep.tar --shuffle", "none of the 3 images can be used: 3 are bad"),
        ("show deep.tar", "none of the 3 images can be used: 3 are bad"),
        ("pack deep.tar -o packed", "none of the 3 images can be used: 3 are bad"),
        (
            "report a.tar::deep.tar",
            "'a.tar::deep.tar' names 2 shards in one text; give a list, ['a.tar', 'deep.tar'], or on",
        ),
        ("report file:a.tar", "'file:a.tar' is the address of a local file; give its path: 'a.tar'"),
        ("pack a.tar -o file:packed", "'file:packed' is the address of a local file; give its path: 'packed'"),
        ("verify file:packed", "'file:packed' is the address of a local file; give its path: 'packed'"),
        (
            "report dead",
            "shard or folder 'dead' is a link to '/absent', which does not exist (the working directory is",
        ),
        ("report empty", "'empty' holds no file, nor do its sub-folders; name a folder of images"),
        (
            "report a.tar --patch-size 16,16",
            "--patch-size is '16,16': sizes is (16, 16); it must be different patch sizes",
        ),
        (
            "report a.tar --patch-size 16x16",
            "--patch-size is '16x16'; it must be a number of pixels, or several such as",
        ),
        ("report a.tar --resolution 224", "--resolution is '224'; it must be native, native:crop, "),
        (
            "report a.tar --algorithm nextfit",
            "--algorithm is 'nextfit'; it must be one of 'auto', 'next_fit', 'first_fit'",
        ),
        ("index a.tar -o dead/index.parquet", "'dead/index.parquet' cannot be written: "),
        (
            "shard linked -o out",
            "'linked/1.jpg' is a link to '/absent/1.jpg', which does not exist; restore that file or folder",
        ),
        ("shard dead -o out", "folder 'dead' is a link to '/absent', which does not exist; name the folder that holds"),
        ("shard a.tar -o out", "'a.tar' is a file; name the folder that holds the images"),
        ("shard empty -o out", "'empty' holds no file, nor do its sub-folders; name the folder of the images"),
        ("shard images -o notes.txt", "--out is 'notes.txt', a file; name a folder for the shards"),
        (
            "train a.tar --steps 1 --classes absent.txt",
            "classes file 'absent.txt' does not exist; give a file with one",
        ),
        (
            "train a.tar --steps 1 --classes empty",
            "--classes is 'empty', a folder; give a file with one class name per",
        ),
        (
            "train a.tar --steps 1 --text caption",
            "--text is 'caption', which no sample has; their members are cls, jpg:",
        ),
        ("train a.tar --steps 1 --augment strong", "--augment is 'strong'; it must be COUNT:MAGNITUDE, such as 2:9"),
        ("train a.tar --steps 1 --device cpu -o notes.txt", "'notes.txt' exists already, as a file; name another file"),
    ],
)
def test_a_mistake_is_one_line_with_value_and_fix(
    command: str, says: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["patchnpack", *command.split()])
    with pytest.raises(SystemExit) as left:
        cli.run()
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"error: {says}"), lines
    assert left.value.code == 2


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.pt"), "'a.pt' does not exist; correct the path"),
        (FileExistsError(17, "File exists", "out"), "'out' exists already, as a file; name another file"),
        (IsADirectoryError(21, "Is a directory", "out"), "'out' is a folder; name a file"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "'a/b' is below a file, not a folder; correct the path"),
        (
            PermissionError(13, "Permission denied", b"a"),
            "'a' cannot be opened: permission denied; change its permissions",
        ),
        (OSError(28, "No space left on device", "a"), "'a': No space left on device"),
        (OSError("shard 'a.tar' has changed"), "shard 'a.tar' has changed"),
        (ValueError("seq_len is 0"), "seq_len is 0"),
    ],
)
def test_a_bare_error_of_the_operating_system_is_put_into_words(error: Exception, says: str) -> None:
    assert message_of(error).startswith(says)


def test_an_error_names_the_sample_that_it_was_raised_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(here / "named.tar", [("a.jpg", JPEG), ("a.cls", b"1"), ("b.jpg", JPEG), ("b.cls", b"cat")])
    monkeypatch.setattr(sys, "argv", ["patchnpack", "pack", "named.tar", "-o", "packed", "--label", "cls"])
    with pytest.raises(SystemExit):
        cli.run()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: label 'cat' (of 'cls') is neither a whole number nor a known class; give --classes")
    assert line.endswith("(raised for the label of the sample with key 'b' in " + repr(str(here / "named.tar")) + ")")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        (
            "a.tar",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
            "a.tar' is a Git LFS pointer, not the shard itself; run `git lfs pull` in its repository",
        ),
        (
            "a.parquet",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
            "a.parquet' is a Git LFS pointer, not the shard itself; run `git lfs pull` in its repository",
        ),
        (
            "a.xlsx",
            b"PK\x03\x04" + b"\0" * 600,
            "a.xlsx' is a table, not a shard: save a table of sizes as .csv, .tsv",
        ),
        ("a.jsonl", b'{"width": 1}\n', "a.jsonl' has no column 'path'; its columns are width: name the one of the"),
    ],
)
def test_a_file_that_is_no_shard_says_what_it_is(
    name: str,
    data: bytes,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(data)
    monkeypatch.setattr(sys, "argv", ["patchnpack", "report", name])
    with pytest.raises(SystemExit):
        cli.run()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert says in line
