"""The demo's data set: reproducible shards of shapes that only their true aspect tells apart."""

import importlib.util
import io
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "shapes.py"
spec = importlib.util.spec_from_file_location("shapes", SCRIPT)
assert spec is not None
assert spec.loader is not None
shapes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shapes)


def read(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_bytes_depend_only_on_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        shapes.draw_shapes(tmp_path / name, 12, 6, seed=seed, images_per_shard=8)
    a, b = (contents(tmp_path / name) for name in "ab")
    assert list(a) == ["classes.txt", "train-000000.tar", "train-000001.tar", "validation-000000.tar"]
    assert a == b
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        assert {member.mtime for member in tar} == {0}  # no clock in the bytes
    ours, others = (set(read(tmp_path / name / "train-000000.tar").values()) for name in "ac")
    assert all(len(member) == 1 for member in ours & others)  # nothing in common but classes


def test_samples_hold_a_jpeg_and_a_class_and_classes_are_balanced(tmp_path: Path) -> None:
    shapes.draw_shapes(tmp_path / "100%d", 9, 6)
    names = (tmp_path / "100%d" / "classes.txt").read_text().split()
    assert names == ["tall", "even", "wide"]
    for split, count in (("train", 9), ("validation", 6)):
        members = read(tmp_path / "100%d" / f"{split}-000000.tar")
        assert sorted(members) == sorted(f"{split}-{i:05d}.{ext}" for i in range(count) for ext in ("cls", "jpg"))
        labels = Counter(int(value) for name, value in members.items() if name.endswith(".cls"))
        assert labels == dict.fromkeys(range(3), count // 3)
        jpegs = [value for name, value in members.items() if name.endswith(".jpg")]
        assert all(Image.open(io.BytesIO(jpeg)).mode == "RGB" for jpeg in jpegs)
        assert len(set(jpegs)) == count


def test_sizes_stay_within_48_to_384_pixels_and_1_to_4(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([shapes.draw_size(rng) for _ in range(5000)])
    assert sizes.min() == 48
    assert sizes.max() == 384
    aspect = np.log2(sizes[:, 0] / sizes[:, 1])
    assert np.abs(aspect).max() < 2.02  # sides are whole pixels
    assert np.histogram(aspect, 4, (-2, 2))[0] == pytest.approx([1250] * 4, rel=0.1)


@pytest.mark.parametrize("seed", range(12))
def test_shape_has_the_aspect_of_its_class_and_image_size_is_independent_of_it(seed: int) -> None:
    sizes = set()
    for label, aspect in enumerate(shapes.ASPECTS):
        pixels = shapes.draw_image(label, np.random.default_rng(seed))
        sizes.add(pixels.shape)
        same = (pixels[None] == shapes.LIGHT[:, None, None]).all(-1)
        y, x = np.nonzero(same[same.sum((1, 2)).argmax()])
        width, height = np.ptp(x) + 1, np.ptp(y) + 1
        assert abs(np.log2(width / height / aspect)) < 0.25
        assert min(x.min(), y.min(), pixels.shape[1] - 1 - x.max(), pixels.shape[0] - 1 - y.max()) >= 0
        assert max(width / pixels.shape[1], height / pixels.shape[0]) > 0.6
    assert len(sizes) == 1


def test_square_resize_limits_accuracy_to_0_6() -> None:
    rng = np.random.default_rng(0)
    aspects = np.log2([np.divide(*shapes.draw_size(rng)) for _ in range(20_000)])
    seen = [np.histogram(np.log2(shape) - aspects, 36, (-3.6, 3.6))[0] for shape in shapes.ASPECTS]
    assert np.max(seen, 0).sum() / np.sum(seen) == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("name", ["images", "validation", "images_per_shard"])
def test_counts_below_one_raise(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        shapes.draw_shapes(tmp_path, **{name: 0})


def test_existing_shards_of_another_data_set_are_refused_and_kept(tmp_path: Path) -> None:
    shapes.draw_shapes(tmp_path, 6, 3, images_per_shard=3)
    before = contents(tmp_path)
    shapes.draw_shapes(tmp_path, 6, 3, images_per_shard=3)
    with pytest.raises(ValueError, match=r"shards of another data set \(train-000001.tar\)"):
        shapes.draw_shapes(tmp_path, 3, 3, images_per_shard=3)
    assert contents(tmp_path) == before


def test_script_writes_the_files_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, same = tmp_path / "out", tmp_path / "same"
    monkeypatch.setattr(sys, "argv", ["shapes.py", str(out), "--images", "5", "--validation", "3", "--seed", "7"])
    shapes.main()
    assert "5 + 3 images of tall, even, wide shapes" in capsys.readouterr().out
    shapes.draw_shapes(same, 5, 3, seed=7)
    assert contents(out) == contents(same)
