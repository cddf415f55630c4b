"""The scenes of several shapes: pictures, masks and boxes agree, and shards hold them."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.examples.scripts import load_script


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script("scenes", monkeypatch)


@pytest.mark.parametrize("seed", range(30))
def test_boxes_are_those_of_the_mask_and_shapes_are_light(scenes: ModuleType, seed: int) -> None:
    scene = scenes.draw_scene(np.random.default_rng(seed))
    assert 1 <= len(scene.boxes) == len(scene.labels) <= 4
    assert min(scene.mask.shape) >= 64
    assert max(scene.mask.shape) <= 256
    rest = scene.mask.copy()
    for (left, top, width, height), label in zip(scene.boxes, scene.labels, strict=True):
        assert abs(np.log2(width / height / scenes.ASPECTS[label])) < 1e-9
        # Up to a pixel further than the box, whose corners lie between pixels; other shapes are two pixels away.
        part = (slice(int(top), int(top + height) + 1), slice(int(left), int(left + width) + 1))
        y, x = np.nonzero(scene.mask[part] == 1 + label)
        # The tips of a diamond cover less than half of their pixels.
        assert width - 5.5 < np.ptp(x) + 1 < width + 1.5
        assert height - 5.5 < np.ptp(y) + 1 < height + 1.5
        assert scene.picture[part][y, x].mean() > 150
        rest[part] = 0
    assert not rest.any(), "a pixel of a shape outside all boxes"
    assert scene.picture[scene.mask == 0].mean() < 110


def test_shards_hold_what_is_drawn_and_the_same_bytes_each_time(scenes: ModuleType, tmp_path: Path) -> None:
    for name in "ab":
        scenes.draw_scenes(tmp_path / name, 5, 2, seed=3)
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert sorted(files) == ["classes.txt", "train-000000.tar", "validation-000000.tar"]
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert sorted(members) == sorted(f"train-{i:05d}.{ext}" for i in range(5) for ext in ("jpg", "json", "seg.png"))
    scene = scenes.draw_scene(np.random.default_rng((3, 0, 4)))
    with Image.open(io.BytesIO(members["train-00004.seg.png"])) as mask:
        np.testing.assert_array_equal(np.array(mask), scene.mask)
    with Image.open(io.BytesIO(members["train-00004.jpg"])) as picture:
        assert np.abs(np.array(picture).astype(int) - scene.picture).mean() < 4
    objects = json.loads(members["train-00004.json"])["objects"]
    assert [each["category"] for each in objects] == [scenes.CLASSES[label] for label in scene.labels]
    np.testing.assert_allclose([each["bbox"] for each in objects], scene.boxes, atol=0.006)


def test_script_writes_the_shards_it_prints(
    scenes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scenes.py", str(tmp_path), "--images", "3", "--validation", "2"])
    scenes.main()
    assert "3 + 2 pictures of tall, even, wide shapes" in capsys.readouterr().out
    assert (tmp_path / "classes.txt").read_text() == "tall\neven\nwide\n"
