from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from patchnpack import PackedImageLoader, Packing, PatchSizes, SampleSide, ScheduledDrop
from patchnpack.cli import main as cli
from patchnpack.cli.main import app
from patchnpack.loaders.packs.manifest import read_manifest
from patchnpack.loaders.packs.recipe import SCHEMA
from patchnpack.loaders.remote.storage import open_folder

Shards = Callable[..., str]
run = CliRunner().invoke


def words(*given: object) -> list[str]:
    return ["pack", *map(str, given), "--seq-len", "64", "--patch-size", "8", "--workers", "1"]


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_packs_are_written_verified_read_and_unpacked(shards: Shards, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(app, words(shards(), "-o", out, "--label", "cls", "--store", "patches", "--part-packs", "4"))
    assert result.exit_code == 0, result.output
    assert f"{out}: " in result.output
    assert "24 images, labels of 'cls', 0 bad, 0 skipped" in result.output
    result = run(app, ["verify", str(out)])
    assert (result.exit_code, "are unchanged since they were written" in result.output) == (0, True)
    labels = [
        label for batch in PackedImageLoader(out, batch_size=2) for label in batch.labels[batch.image_mask].tolist()
    ]
    assert sorted(labels) == [0] * 12 + [1] * 12
    result = run(app, ["unpack", str(out), "-o", str(tmp_path / "shards")])
    assert (result.exit_code, result.output) == (0, f"{tmp_path / 'shards'}: 24 images\n")


@pytest.mark.parametrize(
    ("flags", "lookahead"),
    [
        ([], 24),
        (["--algorithm", "priced"], 24),
        (["--lookahead", "9"], 9),
        (["--algorithm", "largest_fit"], 256),
        (["--fill", "rescale"], 256),
        (["--fill", "trim"], 256),
        (["--patch-size", "8,16", "--block", "4"], 256),
    ],
)
def test_all_images_are_in_view_where_patterns_can_be_followed(
    flags: list[str], lookahead: int, shards: Shards, tmp_path: Path
) -> None:
    out = str(tmp_path / "packed")
    result = run(app, ["pack", shards(), "-o", out, "--seq-len", "64", "--workers", "1", "--epochs", "1", *flags])
    assert result.exit_code == 0, result.output
    packing = read_manifest(open_folder(out)).recipe.packing
    assert packing.lookahead == lookahead


def test_every_packing_option_reaches_the_recipe(shards: Shards, tmp_path: Path) -> None:
    flags = ["--patch-size", "4,8", "--resolution", "side:16:64", "--token-drop", "0.5@1:0:50:20", "--fill", "none"]
    flags += ["--lookahead", "32", "--max-images", "5", "--balance", "8", "--algorithm", "largest_fit"]
    flags += ["--epochs", "2", "--block", "4", "--num-streams", "2", "--seed", "9", "--no-shuffle", "--extra", "cls"]
    result = run(app, [*words(shards(), "-o", tmp_path / "out"), *flags])
    assert result.exit_code == 0, result.output
    recipe = read_manifest(open_folder(tmp_path / "out")).recipe
    packing = recipe.packing
    assert isinstance(packing, Packing)
    assert isinstance(packing.token_drop, ScheduledDrop)
    assert packing.patch_size == PatchSizes((4, 8))
    assert packing.resolution == SampleSide(low=16, high=64)
    assert (packing.fill, packing.lookahead, packing.max_images, packing.balance) == ("none", 32, 5, 8)
    assert (recipe.epochs, recipe.block, recipe.num_streams, recipe.seed, recipe.shuffle) == (2, 4, 2, 9, False)
    assert recipe.extras == ("cls",)


def test_job_array_writes_the_same_bytes_as_one_process(shards: Shards, tmp_path: Path) -> None:
    shard = shards()
    given = [shard, "--part-packs", "3", "-o"]
    assert run(app, words(*given, tmp_path / "one")).exit_code == 0
    flags = words(*given, tmp_path / "array")[:-2]
    for task in (2, 0, 1):
        result = run(app, [*flags, "--task-index", str(task), "--num-tasks", "3"])
        assert result.exit_code == 0, result.output
        assert ("other tasks are not" in result.output) == (task != 1)
    assert written(tmp_path / "array") == written(tmp_path / "one")


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--task-index", "1"], "--task-index is 1 and --num-tasks is None; give both or neither"),
        (["--ray-address", "auto"], "--ray-address is 'auto'; add --engine ray"),
        (["--engine", "ray", "--workers", "2"], "leave out --workers and --task-index"),
        (["--task-index", "0", "--num-tasks", "2", "--workers", "2"], "leave out --workers, or --task-index"),
        (["--task-index", "2", "--num-tasks", "2"], "task is 2 of 2; it must be from 0 to 1"),
        (["--workers", "0"], "--workers is 0"),
        (["--storage-options", "{"], "--storage-options has '{'; each must be KEY=VALUE"),
        (["--resolution", "crop"], "--epochs E"),
        (["--compression", "lz4"], "--compression is for --store patches"),
    ],
)
def test_user_errors_are_one_line_with_the_fix(
    flags: list[str], what: str, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    given = [*words(shards(), "-o", out)[:-2], *flags]
    monkeypatch.setattr(sys, "argv", ["patchnpack", *given])
    with pytest.raises(SystemExit) as ended:
        cli.run()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert what in error
    assert not (out / "manifest.json").exists()


def test_verify_exits_with_1_and_names_the_damaged_file(shards: Shards, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(app, words(shards(), "-o", out)).exit_code == 0
    (part,) = (out / "parts").iterdir()
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    result = run(app, ["verify", str(out)])
    assert result.exit_code == 1
    assert f"parts/{part.name} does not have the bytes that were written" in result.output
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["schema"] == SCHEMA
