"""Packing, unpacking and the commands, on folders and tables of paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from patchnpack import PackedImageLoader
from patchnpack.cli.main import app
from patchnpack.cli.options.run_file import read_run_file
from patchnpack.loaders import Job, open_index
from patchnpack.loaders.prepacking.unpack import unpack
from patchnpack.loaders.prepacking.verify import verify
from patchnpack.loaders.shards.opener import ShardOpener
from tests.images import draw_image, encode_image
from tests.loaders.files.making import PACKING, images_of, loader_of, make_sources
from tests.loaders.loading import keys_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHNPACK_CACHE", str(tmp_path / "cache"))


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("kind", ["folder", "csv"])
@pytest.mark.parametrize("store", ["images", "patches"])
def test_packed_files_give_the_same_images(tmp_path: Path, kind: str, store: str) -> None:
    source = make_sources(tmp_path)[kind]
    want = images_of(list(loader_of(tmp_path, **source)))
    index = open_index(source["source"], path=source.get("path"), opener=ShardOpener(tmp_path / "cache"))
    job = Job(source=index, out=str(tmp_path / "packed"), packing=PACKING, store=store, label=source["label"])  # type: ignore[arg-type]
    assert job.run()
    assert job.run()  # the same recipe
    loader = PackedImageLoader(tmp_path / "packed", batch_size=2)
    assert images_of(list(loader)) == want
    assert not verify(str(tmp_path / "packed")).problems
    unpack(str(tmp_path / "packed"), tmp_path / "out")
    unpacked = loader_of(tmp_path, str(tmp_path / "out" / "*.tar"), label=None)
    assert sorted(unpacked.index.keys) == sorted(index.keys)
    assert {name: pixels for name, (_, pixels) in images_of(list(unpacked)).items()} == {
        name: pixels for name, (_, pixels) in want.items()
    }


def test_a_folder_that_changed_is_another_recipe(tmp_path: Path) -> None:
    source = make_sources(tmp_path)["csv"]
    opener = ShardOpener(tmp_path / "cache")
    index = open_index(source["source"], path="file", opener=opener)
    assert Job(source=index, out=str(tmp_path / "packed"), packing=PACKING, label="species").run()
    table = Path(source["source"])
    table.write_text(table.read_text().replace("cat,", "dog,", 1))
    index = open_index(source["source"], path="file", opener=opener)
    with pytest.raises(ValueError, match=r"holds other packs: source.outside"):
        Job(source=index, out=str(tmp_path / "packed"), packing=PACKING, label="species")


def test_report_show_pack_and_index_take_folders_and_tables(tmp_path: Path) -> None:
    make_sources(tmp_path)
    flags = ["--seq-len", "64", "--patch-size", "8"]
    folder, table = str(tmp_path / "images"), [str(tmp_path / "train.csv"), "--path", "file"]
    reports = [json.loads(run("report", *source, *flags, "--json").stdout) for source in ([folder], table)]
    assert [report["images"] for report in reports] == [40, 40]
    assert reports[0]["packs"] == reports[1]["packs"]
    (tmp_path / "tables").mkdir()
    moved = tmp_path / "tables" / "t.csv"
    moved.write_text((tmp_path / "train.csv").read_text())
    again = run("report", str(moved), "--path", "file", "--root", str(tmp_path), *flags, "--json")
    assert json.loads(again.stdout)["images"] == 40
    for name, source in (("a", [folder, "--label", "folder"]), ("b", [*table, "--label", "species"])):
        run("show", *source, *flags, "-o", str(tmp_path / f"{name}.png"))
        assert (tmp_path / f"{name}.png").stat().st_size
        run("pack", *source, *flags, "-o", str(tmp_path / name), "--workers", "2")
        loader = PackedImageLoader(tmp_path / name, batch_size=2)
        assert (len(keys_of(list(loader))), loader.num_classes) == (40, 4)
    assert "40 images in 40 files (40 read now)" in run("index", folder).output
    assert "(0 read now)" in run("index", folder).output
    assert (tmp_path / "images" / "index.parquet").exists()
    out = str(tmp_path / "table.parquet")
    assert "40 images in 40 files" in run("index", *table, "-o", out).output
    assert len(keys_of(list(loader_of(tmp_path, out, label="species")))) == 40
    failed = CliRunner().invoke(app, ["index", *table])
    assert failed.exit_code
    assert "-o index.parquet" in str(failed.exception)


def test_a_run_on_folders_numbers_classes_alike_in_training_validation_and_evaluation(tmp_path: Path) -> None:
    make_sources(tmp_path)
    for name in ("cat", "dog"):  # the validation folder lacks the first two classes
        (tmp_path / "held" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "held" / name / f"v{i}.jpg").write_bytes(encode_image(draw_image(20, 20, seed=i)))
    torch.manual_seed(0)
    run(
        *("train", str(tmp_path / "images"), "--validation", str(tmp_path / "held"), "--label", "folder"),
        *("--seq-len", "64", "--patch-size", "8", "--width", "32", "--depth", "1", "--heads", "1", "--steps", "2"),
        *("--device", "cpu", "-o", str(tmp_path / "run")),
    )
    assert (tmp_path / "run" / "classes.txt").read_text().split() == ["10", "9", "cat", "dog"]
    assert read_run_file(tmp_path / "run" / "run.toml")["classes"] == str(tmp_path / "run" / "classes.txt")
    out = tmp_path / "predictions.parquet"
    run("eval", str(tmp_path / "run" / "checkpoint.pt"), str(tmp_path / "held"), "-o", str(out))
    import pyarrow.parquet as pq

    table = pq.read_table(out).to_pydict()
    assert {key.partition("/")[0]: label for key, label in zip(table["key"], table["label"], strict=True)} == {
        "cat": 2,
        "dog": 3,
    }
    features = tmp_path / "features.parquet"
    table_of = [str(tmp_path / "train.csv"), "--path", "file"]
    run("features", str(tmp_path / "run" / "checkpoint.pt"), *table_of, "-o", str(features))
    assert len(pq.read_table(features)) == 40


def test_path_is_for_whichever_of_training_and_validation_data_is_a_table(tmp_path: Path) -> None:
    make_sources(tmp_path)
    folder, table = str(tmp_path / "images"), tmp_path / "held.csv"
    table.write_text((tmp_path / "train.csv").read_text().replace("file,species", "file,folder", 1))
    flags = [
        *("--seq-len", "64", "--patch-size", "8", "--width", "32", "--depth", "1", "--heads", "1", "--steps", "1"),
        *("--device", "cpu", "--path", "file", "--label", "folder"),
    ]
    for name, data, validation in (("a", folder, str(table)), ("b", str(table), folder)):
        torch.manual_seed(0)
        run("train", data, "--validation", validation, *flags, "-o", str(tmp_path / name))
        assert (tmp_path / name / "checkpoint.pt").exists()
    neither = ["train", folder, "--validation", folder, *flags, "-o", str(tmp_path / "c")]
    error = str(CliRunner().invoke(app, neither).exception)
    assert "path is 'file', which is for tables of paths" in error
