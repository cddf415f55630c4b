from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from patchnpack import PackedImageLoader, Packing
from patchnpack.cli import main as cli
from patchnpack.cli.main import app
from patchnpack.loaders import open_index
from tests.images import draw_image, encode_image, write_png, write_tar

Shards = Callable[..., str]
CLOTHING = Path(__file__).resolve().parents[4] / "shared" / "data" / "clothing"
run = CliRunner().invoke


def test_sweep_prints_a_table_within_80_columns_and_the_advice(shards: Shards) -> None:
    result = run(app, ["report", shards(), "--seq-len", "64", "--sweep"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert "*" in result.output
    assert "=" in result.output
    assert "--algorithm" in result.output


def test_report_counts_samples_without_an_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = encode_image(draw_image(32, 24))
    members = [("a.jpg", data), ("b.jpg", data), ("c.svg", data), ("d.v2.jpg", data), ("README", b"text")]
    path = write_tar(tmp_path / "a.tar", members)
    result = run(app, ["report", path, "--seq-len", "64", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["images"], found["bad_images"], found["without_image"]) == (2, 0, 3)
    assert "3 of 5 samples have no image" in caplog.text
    assert re.search(r"without image +3 samples, left out", run(app, ["report", path, "--seq-len", "64"]).stdout)
    packed = str(tmp_path / "packed")
    assert run(app, ["pack", path, "-o", packed, "--workers", "1", "--seq-len", "64"]).exit_code == 0
    assert json.loads(run(app, ["report", packed, "--json"]).stdout)["without_image"] == 3
    assert PackedImageLoader(packed, batch_size=1).stats()["without_image"] == 3


def test_sweep_flags_choose_the_settings(shards: Shards) -> None:
    flags = ["--sweep-seq-len", "32,48", "--sweep-patch-size", "8,16", "--sweep-algorithm", "best_fit"]
    arguments = ["report", shards(), "--seq-len", "64", "--sweep", *flags, "--sweep-lookahead", "7", "--csv"]
    result = run(app, arguments)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    tried = {(row["patch_size"], row["seq_len"], row["algorithm"], row["lookahead"]) for row in rows}
    expected = {(P, L, "best_fit", "7") for P in ("8", "16") for L in ("32", "48")} | {("16", "64", "best_fit", "7")}
    assert {row for row in tried if row[2] == "best_fit"} == expected
    assert len(tried - expected) == 1  # the current setting


def _size_table(folder: Path, shards: str) -> str:
    index = open_index(shards, image="jpg;jpeg;png;webp")
    (folder / "sizes.csv").write_text(
        "width,height\n" + "".join(f"{w},{h}\n" for w, h in zip(index.width, index.height, strict=True))
    )
    return str(folder / "sizes.csv")


def _odd_shard(folder: Path) -> str:
    """Two images, of which one has three frames, and a third that is of 16 bits."""
    frames = [draw_image(40, 30, seed) for seed in range(3)]
    members = [
        ("a.png", encode_image(frames[0], "PNG")),
        ("b.gif", encode_image(frames[0], "GIF", save_all=True, append_images=frames[1:])),
        ("c.png", write_png(40, 30, bits=16)),
    ]
    return write_tar(folder / "odd.tar", members)


@pytest.mark.parametrize("order", [[], ["--shuffle"]])
def test_report_counts_files_of_several_pages_as_pages_says(order: list[str], tmp_path: Path) -> None:
    arguments = ["report", _odd_shard(tmp_path), "--image", "png;gif", "--seq-len", "64", "--json", *order]
    for pages, images in (("first", 2), ("error", 1)):
        result = run(app, [*arguments, "--pages", pages])
        assert result.exit_code == 0, result.output
        fields = json.loads(result.stdout)
        assert (fields["images"], fields["bad_images"]) == (images, 3 - images)
    wrong = run(app, [*arguments, "--pages", "all"])
    assert "pages is 'all'; it must be 'first'" in str(wrong.exception)


def test_report_of_a_table_of_sizes_equals_that_of_the_shards(shards: Shards, tmp_path: Path) -> None:
    path = shards()
    table = _size_table(tmp_path, path)
    found = [json.loads(run(app, ["report", name, "--seq-len", "64", "--json"]).stdout) for name in (table, path)]
    assert [fields.pop("source") for fields in found] == [table, path]
    for fields in found:
        del fields["planning_seconds_per_million"]
        (fields["pricing"] or {}).pop("seconds", None)
    assert found[0] == found[1]
    assert found[0]["images"] == 24


def test_text_and_page_of_a_table_name_it(shards: Shards, tmp_path: Path) -> None:
    _size_table(tmp_path, shards())
    out = tmp_path / "report.html"
    with contextlib.chdir(tmp_path):
        result = run(app, ["report", "sizes.csv", "--seq-len", "64", "--html", str(out)], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert re.search(r"^source +sizes\.csv", result.output)
    page = out.read_text()
    assert "<h1>sizes.csv</h1>" in page
    assert page.count("<svg") == 8
    assert "data:image/jpeg" not in page


def test_several_tables_are_one_data_set_and_may_be_shuffled(tmp_path: Path) -> None:
    for name, size in (("a.csv", 64), ("b.csv", 400)):
        (tmp_path / name).write_text("w,h\n" + f"{size},{size}\n" * 300)
    tables = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    packs = []
    for flags in ([], ["--shuffle"], ["--shuffle", "--seed", "1"]):
        arguments = ["report", *tables, "--algorithm", "next_fit", "--max-images", "9", "--json", *flags]
        found = json.loads(run(app, arguments).stdout)
        assert (found["images"], found["source"]) == (600, f"{tables[0]} and 1 more")
        packs.append(found["packs"])
    assert len(set(packs)) > 1


def test_sweep_multiple_restricts_the_lengths(shards: Shards) -> None:
    found = json.loads(run(app, ["report", shards(), "--json", "--sweep", "--sweep-multiple", "24"]).stdout)["sweep"]
    (search,) = found["searches"]
    assert search["multiple"] == 24
    assert all(length % 24 == 0 for length, _ in search["padding"])


def test_csv_without_a_sweep_has_one_line_per_method(shards: Shards) -> None:
    result = run(app, ["report", shards(), "--seq-len", "64", "--csv"])
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["images"] for row in rows] == ["24"] * 6


def test_json_holds_the_sweep_if_requested(shards: Shards) -> None:
    path = shards()
    assert "sweep" not in json.loads(run(app, ["report", path, "--json"]).stdout)
    found = json.loads(run(app, ["report", path, "--json", "--sweep", "--batch-size", "2", "--ranks", "3"]).stdout)
    assert found["sweep"]["samples"] == 24
    assert (found["batch_size"], found["ranks"]) == (2, 3)


def test_shuffled_report_follows_the_order_of_the_loader(shards: Shards) -> None:
    path, packing = shards(), Packing(seq_len=20)
    found = json.loads(run(app, ["report", path, "--seq-len", "20", "--shuffle", "--seed", "3", "--json"]).stdout)
    loader = PackedImageLoader(path, packing, batch_size=8, shuffle=True, seed=3, image="jpg;jpeg;png;webp")
    for _ in loader:
        pass
    stats = loader.stats()
    for name in ("images", "packs", "tokens", "attention_cost", "attention_spread", "images_per_pack"):
        assert found[name] == pytest.approx(stats[name]), name


def test_html_is_one_page_with_an_optional_picture(shards: Shards, tmp_path: Path) -> None:
    path, out = shards(), tmp_path / "report.html"
    result = run(app, ["report", path, "--seq-len", "64", "--html", str(out)])
    assert result.exit_code == 0, result.output
    assert f"wrote {out}" in result.output.replace("\n", "")
    page = out.read_text()
    assert page.count("<svg") == 8
    assert "data:image/jpeg;base64," in page
    result = run(app, ["report", path, "--seq-len", "64", "--html", str(out), "--no-picture", "--json"])
    assert json.loads(result.stdout)["images"] == 24
    assert "data:image/jpeg" not in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "--csv"], "error: --json and --csv both print to standard output; give only one of them"),
        (["--sweep-seq-len", "1k"], "error: --sweep-seq-len is '1k'; give whole numbers of at least 1"),
        (["--sweep-lookahead", "0"], "error: --sweep-lookahead is '0'; give whole numbers"),
        (["--sweep-algorithm", "worst"], "error: --sweep-algorithm has 'worst'; choose from auto, next_fit"),
        (["--sweep-multiple", "0"], "error: --sweep-multiple is 0; it must be at least 1"),
        (["--sweep-multiple", "8", "--sweep-seq-len", "64"], "error: --sweep-multiple is 8, but --sweep-seq-len names"),
        (["sizes.csv"], "'sizes.csv' is a table of sizes and"),
        (["--batch-size", "0"], "error: --batch-size is 0; it must be at least 1"),
    ],
)
def test_user_error_is_one_line_with_the_fix(
    arguments: list[str],
    message: str,
    shards: Shards,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["patchnpack", "report", shards(), *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.run()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(not CLOTHING.is_dir(), reason="the clothing photographs are not in ../shared")
def test_advice_for_the_clothing_photographs(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    arguments = [
        "report",
        f"{CLOTHING}/train-{{000000..000009}}.tar",
        "--seq-len",
        "4096",
        "--html",
        str(out),
        "--json",
    ]
    found = json.loads(run(app, arguments).stdout)
    assert (found["images"], found["packs"], found["oversize"]) == (3068, 725, 0)
    assert found["sweep"]["advice"]["flags"].startswith("--seq-len 3400 --algorithm priced ")
    assert out.read_text().count("<svg") == 8


def test_report_of_a_packed_folder_equals_that_of_its_shards(shards: Shards, tmp_path: Path) -> None:
    source, folder = shards(), str(tmp_path / "packed")
    flags = ["--seq-len", "64", "--token-drop", "0.25"]
    assert (
        run(
            app, ["pack", source, "-o", folder, "--workers", "1", "--no-shuffle", "--lookahead", "256", *flags]
        ).exit_code
        == 0
    )
    found = [json.loads(run(app, ["report", *words, "--json"]).output) for words in ([folder], [source, *flags])]
    for name in ("images", "tokens", "packs", "padding", "images_per_pack", "attention_cost", "drop_rate", "steps"):
        assert found[0][name] == found[1][name], name
    assert found[0]["images"] == 24


@pytest.mark.parametrize("store", ["images", "patches"])
@pytest.mark.parametrize("part_packs", ["1", "4", "64"])  # more parts than shards, several, and fewer
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_field_of_the_report_of_a_packed_folder_equals_that_of_its_shards(
    store: str, part_packs: str, shuffle: bool, shards: Shards, tmp_path: Path
) -> None:
    sources, folder = [shards("a.tar"), shards("b.tar", broken=2)], str(tmp_path / "packed")
    flags = ["--seq-len", "32", "--token-drop", "beta:0.3:0.5", "--seed", "3", "--algorithm", "largest_fit"]
    order = "--shuffle" if shuffle else "--no-shuffle"
    how = [
        "-o",
        folder,
        "--store",
        store,
        "--part-packs",
        part_packs,
        "--workers",
        "1",
        "--lookahead",
        "256",
        "--max-rate",
        "1",
        order,
    ]
    assert run(app, ["pack", *sources, *how, *flags]).exit_code == 0
    packed, source = (
        json.loads(run(app, ["report", *words, "--json"]).stdout)
        for words in ([folder], [*sources, *flags, *(["--shuffle"] if shuffle else [])])
    )
    for found in (packed, source):
        del found["planning_seconds_per_million"], found["source"]
        (found["pricing"] or {}).pop("seconds", None)
    assert packed == source
    assert (packed["images"], packed["bad_images"]) == (46, 2)
    assert len({baseline["sequences"] for baseline in packed["baselines"][:2]}) == 2


def test_report_of_a_packed_folder_refuses_another_seed(shards: Shards, tmp_path: Path) -> None:
    folder = str(tmp_path / "packed")
    flags = ["--workers", "1", "--seq-len", "64", "--seed", "3"]
    assert run(app, ["pack", shards(), "-o", folder, *flags]).exit_code == 0
    refused = run(app, ["report", folder, "--seed", "4"])
    assert "was packed with --seed 3; leave out --seed 4" in str(refused.exception)
    assert run(app, ["report", folder, "--seed", "3"]).exit_code == 0


def test_report_cannot_change_the_packing_of_a_packed_folder(shards: Shards, tmp_path: Path) -> None:
    folder = str(tmp_path / "packed")
    assert run(app, ["pack", shards(), "-o", folder, "--workers", "1", "--seq-len", "64"]).exit_code == 0
    refused = run(app, ["report", folder, "--seq-len", "99"])
    assert "leave out the packing flags" in str(refused.exception)
    assert "without other shards and --shuffle" in str(run(app, ["report", folder, "--shuffle"]).exception)
