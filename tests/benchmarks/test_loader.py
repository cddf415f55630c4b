"""benchmarks/loader.py and gil.py on a few drawn images: every method reads all, and the packing peer is correct."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.images import join_patches

ROOT = Path(__file__).resolve().parents[2]


def load(folder: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


loader = load("benchmarks", "loader")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shapes")
    load("examples", "shapes").draw_shapes(folder, 36, 1, images_per_shard=9)
    return f"{folder}/train-*.tar"


def run(script: str, shards: str, out: Path, *options: str) -> tuple[str, list[dict[str, str]]]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), shards, "--rounds", "2", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    with out.open() as file:
        return done.stdout, list(csv.DictReader(file))


def test_every_method_is_measured_against_the_bound_of_its_setting(shards: str, tmp_path: Path) -> None:
    printed, rows = run("loader.py", shards, tmp_path / "out.csv")
    small = "at most 64 tokens"
    peers = ["webdataset, images only", "webdataset, packed"]
    assert [(row["setting"], row["method"]) for row in rows] == [
        *(
            (setting, method)
            for setting in ("native", "500x375")
            for method in ("bare pool", "PackedImageLoader", "DALI, images only", *peers)
        ),
        *((small, method) for method in ("bare pool", "PackedImageLoader", *peers)),
    ]
    for row in rows:
        assert row["method"] in printed
        assert all(row[name] for name in ("machine", "versions", "command", "date"))
        if row["images_per_second"] == "not installed":
            assert row["method"] == "DALI, images only"
            continue
        assert int(row["images_per_second"]) > 0
        assert 0 < float(row["low"]) <= float(row["of_the_bound"]) <= float(row["high"])
        assert row["method"] != "bare pool" or row["of_the_bound"] == "1.000"


def test_quick_measures_only_the_loader(shards: str, tmp_path: Path) -> None:
    _, rows = run("loader.py", shards, tmp_path / "out.csv", "--quick")
    assert [(row["setting"], row["method"]) for row in rows] == [
        ("native", "bare pool"),
        ("native", "PackedImageLoader"),
        ("500x375", "bare pool"),
        ("500x375", "PackedImageLoader"),
    ]
    for row in rows:
        assert float(row["cpu_us"]) > float(row["loop_us"]) > 0
        assert row["method"] != "bare pool" or row["cpu_of_the_bound"] == "1.000"


def test_python_cost_per_image_is_measured_with_one_and_two_threads(shards: str, tmp_path: Path) -> None:
    printed, rows = run("gil.py", shards, tmp_path / "out.csv")
    assert [row["threads"] for row in rows] == ["1", "2"]
    assert all(0 < float(row["low"]) <= float(row["median"]) <= float(row["high"]) for row in rows)
    assert "microseconds per image" in printed


def test_missing_shards_are_named(tmp_path: Path) -> None:
    for script in ("loader.py", "gil.py"):
        command = [sys.executable, str(ROOT / "benchmarks" / script), str(tmp_path / "none.tar")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "none.tar" in done.stderr
        assert "give shards of JPEG photographs" in done.stderr


def test_packing_peer_uses_next_fit_and_keeps_every_pixel() -> None:
    L, P, B = 24, 16, 2
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*rng.integers(1, 65, 2), 3), np.uint8) for _ in range(40)]
    lengths = [-(-image.shape[0] // P) * -(-image.shape[1] // P) for image in images]
    expected, room = [], 0
    for i, length in enumerate(lengths):
        if length > room:
            expected.append([i])
            room = L - length
        else:
            expected[-1].append(i)
            room -= length

    batches = list(loader.next_fit(((image,) for image in images), L, P, B))
    assert [batch["images"] for batch in batches] == [
        sum(map(len, expected[first : first + B])) for first in range(0, len(expected), B)
    ]
    assert all(len(batch["patches"]) == B for batch in batches[:-1])
    packs = [tuple(batch[name][b].numpy() for name in ("patches", "segment_ids", "coords")) for batch in batches
             for b in range(len(batch["patches"]))]  # fmt: skip
    assert len(packs) == len(expected)
    for (patches, segment_ids, coords), members in zip(packs, expected, strict=True):
        assert segment_ids.tolist() == [
            *(number for number, i in enumerate(members, 1) for _ in range(lengths[i])),
            *[0] * (L - sum(lengths[i] for i in members)),
        ]
        assert not patches[segment_ids == 0].any()
        for number, i in enumerate(members, 1):
            here = segment_ids == number
            canvas = join_patches(patches[here], coords[here], (64 // P, 64 // P), P)
            height, width, _ = images[i].shape
            assert np.array_equal(canvas[:height, :width], images[i])
            canvas[:height, :width] = 0
            assert not canvas.any()


def test_packing_peer_raises_for_an_image_larger_than_a_pack() -> None:
    with pytest.raises(ValueError, match="64x48 pixels has 12 patches, more than a pack's 11 slots"):
        list(loader.next_fit([(np.zeros((48, 64, 3), np.uint8),)], 11, 16, 2))
