"""--decode and --convert name functions: they reach every command that reads images, and a file imports none."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.images import write_tar
from tests.loaders.imaging.arrays import png, values
from tests.patchnpack.cli.runs import CPU, SMALL, failed, ran

MODULE = """
import imagecodecs

with open({log!r}, "a") as log:
    print("imported", file=log)


def decode(data):
    pixels = imagecodecs.png_decode(data)
    return (pixels >> 8).astype("uint8")


def darker(values):
    return (values[..., :1] / 512).astype("uint8").repeat(3, 2)
"""


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A shard of 16-bit pictures, and a module `my_scans` in the current folder."""
    module = f"my_scans_{tmp_path.parent.name.replace('-', '_')}_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(MODULE.format(log=str(tmp_path / "imports")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    members = []
    for i in range(6):
        members += [(f"{i}.png", png(values("uint16", 3, 24, 32, seed=i))), (f"{i}.cls", str(i % 2).encode())]
    return write_tar(tmp_path / "a.tar", members)


def module_of(shard: str) -> str:
    return next(Path(shard).parent.glob("my_scans*.py")).stem


def test_a_decode_function_reads_images_in_every_command_and_no_file_imports_it(shard: str, tmp_path: Path) -> None:
    decode = f"{module_of(shard)}:decode"
    flag = ["--decode", decode]
    run = tmp_path / "run"
    ran("train", shard, *SMALL, "--epochs=1", "-o", run, *flag)
    assert tomllib.loads((run / "run.toml").read_text())["decode"] == decode  # as text
    assert (tmp_path / "imports").read_text() == "imported\n"
    ran("eval", run / "checkpoint.pt", shard, *CPU, *flag, "-o", tmp_path / "p.parquet")
    assert pq.read_table(tmp_path / "p.parquet").num_rows == 6
    ran("features", run / "checkpoint.pt", shard, *CPU, *flag, "-o", tmp_path / "f.parquet")
    assert pq.read_table(tmp_path / "f.parquet").num_rows == 6
    ran("sweep", run / "checkpoint.pt", shard, *CPU, *flag, "--resolutions=fit:4", "-o", tmp_path / "s.csv")
    ran("probe", run / "checkpoint.pt", shard, *CPU, *flag, "-o", tmp_path / "probe")
    ran("show", shard, *flag, "--seq-len=64", "-o", tmp_path / "packs.png")
    assert "6 images" in ran("stats", shard, *flag)
    assert '"bad_images": 0' in ran("report", shard, *flag, "--seq-len=64", "--json")
    packed = tmp_path / "packed"
    ran("pack", shard, "-o", packed, "--seq-len=64", *flag)
    for command in ("eval", "features", "sweep", "probe"):
        message = failed(command, run / "checkpoint.pt", shard, *CPU)
        assert f"decode is '{decode}' in a file of options (run.toml or --config)" in message
        assert f"if you trust it, give --decode {decode}, otherwise --decode ''" in message
    message = failed("train", "--config", run / "run.toml", shard, "-o", tmp_path / "again")
    assert "which does not import modules by itself" in message
    # Without the function, all images are bad.
    assert "16 bits per channel" in failed("eval", run / "checkpoint.pt", shard, *CPU, "--decode", "")
    message = failed("show", packed, "-o", tmp_path / "packs.png")
    assert "hold images for a decode function" in message
    ran("show", packed, *flag, "-o", tmp_path / "packs.png")


def test_a_convert_function_of_a_run_file_is_not_imported_either(shard: str, tmp_path: Path) -> None:
    convert = f"{module_of(shard)}:darker"
    run = tmp_path / "run"
    ran("train", shard, *SMALL, "--epochs=1", "-o", run, "--convert", convert)
    assert tomllib.loads((run / "run.toml").read_text())["convert"] == convert
    message = failed("eval", run / "checkpoint.pt", shard, *CPU)
    assert f"convert is '{convert}' in a file of options" in message
    ran("eval", run / "checkpoint.pt", shard, *CPU, "--convert", convert, "-o", tmp_path / "p.parquet")
    ran("eval", run / "checkpoint.pt", shard, *CPU, "--convert", "scale", "-o", tmp_path / "p.parquet")


def test_a_convert_of_a_run_file_that_is_no_function_is_used(shard: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ran("train", shard, *SMALL, "--epochs=1", "-o", run, "--convert=window:0:4000")
    ran("eval", run / "checkpoint.pt", shard, *CPU, "-o", tmp_path / "p.parquet")
    assert not (tmp_path / "imports").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my_formats", "--decode is 'my_formats'; give MODULE:FUNCTION, such as my_formats:decode"),
        ("no_such_module:decode", "--decode is 'no_such_module:decode', which cannot be imported"),
        ("math:no_such", "cannot be imported (module 'math' has no attribute 'no_such')"),
        ("math:pi", "--decode is 'math:pi', which is no function"),
    ],
)
def test_a_decode_function_that_does_not_exist_is_named(text: str, message: str, shard: str) -> None:
    assert message in failed("show", shard, "--decode", text)


def test_index_has_no_decode_since_headers_are_read_without_it(shard: str) -> None:
    assert "No such option" in failed("index", shard, "--decode", "math:sqrt")
