"""Samples of several images on the command line: documents through shards, index, report, packed folder, and errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from patchnpack.cli import main as cli
from patchnpack.cli.main import app
from tests.images import draw_image, encode_image, read_tar, write_tar

BY_KEY = "key:(.+)_[0-9]+"
PAGES = {"a": 3, "b": 12, "c": 1}


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with documents/a_1.png ... of `PAGES`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "documents").mkdir()
    for name, count in PAGES.items():
        for page in range(1, count + 1):
            data = encode_image(draw_image(32 + page, 24, seed=page), "PNG")
            (tmp_path / "documents" / f"{name}_{page}.png").write_bytes(data)
    return tmp_path


def run(command: str) -> str:
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    return result.output


def test_documents_go_through_shards_index_report_packs_and_back(documents: Path) -> None:
    assert "16 images of 3 samples in 1 shard" in run(f"shard documents -o shards --sample {BY_KEY}")
    shard = "shards/train-000000.tar"
    assert "16 images of 3 samples in 1 shard" in run(f"index {shard} --sample members")
    found = json.loads(run(f"report {shard} --sample members --seq-len 256 --json"))
    assert (found["samples"], found["images"], found["images_per_sample_max"]) == (3, 16, 12)
    assert "samples             3" in run(f"report {shard} --sample members --seq-len 256")
    chosen = json.loads(run(f"report {shard} --sample members --frames 2:random:repeat --seq-len 256 --json"))
    assert (chosen["samples"], chosen["images"]) == (3, 6)
    run(f"show {shard} --sample members --seq-len 256 -o packs.png")
    with Image.open("packs.png") as picture:
        assert picture.width == 1600
    for store in ("images", "patches"):
        packed = run(f"pack {shard} --sample members --seq-len 256 --store {store} -o {store} --workers 1")
        assert "16 images of 3 samples" in packed
        run(f"verify {store}")
        run(f"unpack {store} -o un-{store}")
        members = [name for name, _ in read_tar(f"un-{store}/images-000000.tar") if name.endswith("png")]
        assert {name: sum(member.startswith(f"{name}.") for member in members) for name in PAGES} == PAGES


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            f"index returns.tar --sample {BY_KEY}",
            f"`patchnpack shard FOLDER -o SHARDS --sample '{BY_KEY}'` writes such shards",
        ),
        (
            "report documents --sample key:(.+)-[0-9]+",
            "--sample is 'key:(.+)-[0-9]+', which matches none of the 16 keys",
        ),
        ("shard documents -o out --sample key:x_(.+)", "--sample is 'key:x_(.+)', which names a sample for none of"),
        ("report documents --sample pages", "--sample is 'pages'; did you mean 'members'?"),
        ("report clips", "2 of .mp4; give --sample members to use the frames of videos, name another folder"),
        ("report numbered.tar", "give --sample members to use members such as .1.png as images"),
        (
            f"report documents --sample {BY_KEY} --max-images 8 --seq-len 256",
            "has 12 images, more than --max-images 8 (1 of 3 samples do), and a sample stays in one pack; choose "
            "some with --frames 8, raise --max-images",
        ),
        (
            "report sizes.csv --sample members",
            "--sample is 'members', and 'sizes.csv' is read as a table of sizes, whose images are each alone; leave "
            "--sample out, or for a table of paths name their column with --path",
        ),
        (f"report documents --sample {BY_KEY} --frames 99", "99 frames are 99 images per sample, more than"),
    ],
)
def test_an_error_of_samples_is_one_line_with_flags(
    command: str, says: str, documents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = encode_image(draw_image(32, 24), "PNG")
    write_tar(documents / "returns.tar", [(f"{key}.png", data) for key in ("a_1", "b_1", "a_2")])
    write_tar(documents / "numbered.tar", [("a.1.png", data), ("a.2.png", data)])
    (documents / "sizes.csv").write_text("width,height\n32,24\n")
    (documents / "clips").mkdir()
    for name in ("a", "b"):
        (documents / "clips" / f"{name}.mp4").write_bytes(b"a video")
    monkeypatch.setattr(sys, "argv", ["patchnpack", *command.split()])
    with pytest.raises(SystemExit) as left:
        cli.run()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert left.value.code == 2
    assert says in line


@pytest.mark.parametrize("more", ["", " --shuffle", " --sweep"])
def test_report_names_the_key_of_a_sample_of_too_many_images(documents: Path, more: str) -> None:
    result = CliRunner().invoke(app, f"report documents --sample {BY_KEY} --max-images 4 --seq-len 512{more}".split())
    error = str(result.exception)
    assert "has 12 images, more than max_images 4 (1 of 3 samples do)" in error
    assert "the first such sample begins with 'b_1' in shard " in error
    assert "b_1.png'" in error
