"""What the index knows is held against the model before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from webdataset import ShardWriter

from patchnpack import (
    DropToTokens,
    FitTokens,
    Mixture,
    Native,
    PackedImageLoader,
    Packing,
    PatchSizes,
    SampleSide,
)
from patchnpack.loaders import scan
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.packer.policies.sampled_resolution import ScheduledResolution
from patchnpack.predict import features, predict
from patchnpack.trainer import Distillation, TrainConfig, evaluate, train
from patchnpack.trainer.checkpoint import save_checkpoint
from patchnpack.training import train_on_shards
from tests.images import encode_image

Write = Callable[..., str]
SMALL: dict[str, Any] = {"width": 12, "depth": 1, "heads": 2}
CONFIG = TrainConfig(steps=3, precision="float32", device="cpu")
PACKING = Packing(seq_len=64, patch_size=8)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a shard of grey images with the given sizes, (width, height), and labels."""

    def written(sizes: list[tuple[int, int]], labels: list[Any], name: str = "images.tar", member: str = "cls") -> str:
        with ShardWriter(f"{tmp_path}/%d{name}", verbose=0, encoder=False) as sink:
            for i, ((width, height), label) in enumerate(zip(sizes, labels, strict=True)):
                grey = np.full((height, width, 3), 20 * i % 256, np.uint8)
                data = {"__key__": f"k{i:03d}", "png": encode_image(grey, "PNG")}
                sink.write(data | ({} if label is None else {member: str(label).encode()}))
        (tmp_path / f"0{name}").rename(tmp_path / name)
        return str(tmp_path / name)

    return written


class Never(PackedImageLoader):
    """A loader that must not be read."""

    def __iter__(self) -> Any:
        raise AssertionError("a batch was loaded before the check")


def never(shard: Any, packing: Packing = PACKING, **options: Any) -> Never:
    given: dict[str, Any] = {"label": "cls", "num_threads": 1} | options
    return Never(shard, packing, batch_size=1, **given)


def model(**fields: Any) -> NaViT:
    return NaViT(NaViTConfig(**SMALL | {"num_classes": 2, "patch_size": 8, "max_grid": 16} | fields))


SIZES = [(64, 32), (40, 40), (200, 16), (64, 64)]  # the third has 25 patches per side
TOO_LARGE = (
    r"image 'k002' in shard '.*images\.tar' has 25 patches per side, .* max_grid 16; raise max_grid to at least 25"
)


def test_the_largest_grid_is_checked_before_the_first_batch_and_its_image_named(write: Write) -> None:
    shard = write(SIZES, [0, 1, 0, 1])
    for run in (
        lambda: train(model(), never(shard), config=CONFIG),
        lambda: train(model(), [], validation=never(shard), config=CONFIG),
        lambda: evaluate(model(), never(shard)),
        lambda: predict(model(), never(shard)),
        lambda: features(model(), never(shard)),
    ):
        with pytest.raises(ValueError, match=TOO_LARGE):
            run()
    for fields in ({"max_grid": 25}, {"position": "fractional"}, {"position": "rope", "width": 16}):
        train(model(**fields), PackedImageLoader(shard, PACKING, batch_size=1, label="cls"), config=CONFIG)


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({"resolution": FitTokens(36)}, 18),
        ({"resolution": SampleSide(low=100, high=101), "seq_len": 512}, 44),
        ({"resolution": ScheduledResolution(((0, FitTokens(8)), (1000, Native())))}, 25),
        ({"patch_size": PatchSizes((4, 8)), "seq_len": 512}, 50),
        ({"seq_len": 20, "oversize": "shrink"}, 13),
        ({"seq_len": 49, "oversize": "skip"}, 8),
        ({"token_drop": DropToTokens(10)}, 25),
    ],
)
def test_the_largest_grid_is_that_of_the_plan(changes: dict[str, Any], side: int, write: Write) -> None:
    shard = write(SIZES, [0, 1, 0, 1])
    loader = PackedImageLoader(shard, PACKING.replace(**changes), batch_size=1, num_threads=1)
    found = loader.largest_grids()
    assert max(value for value, _ in found.values()) == side
    if "patch_size" not in changes and not isinstance(changes.get("resolution"), ScheduledResolution):
        assert max(int(batch.grids.max()) for batch in loader) == side


def test_the_largest_grid_of_a_filter_and_of_a_mixture_is_that_of_the_rows_used(write: Write) -> None:
    shard, other = write(SIZES, [0, 1, 0, 1]), write([(300, 8)], [1], name="other.tar")
    kept = PackedImageLoader(shard, PACKING, batch_size=1, where=lambda index: index.width < 100)
    assert kept.largest_grids()[8][0] == 8
    mixed = PackedImageLoader(Mixture({"a": (shard, 1.0), "b": (other, 1.0)}), PACKING, batch_size=1)
    assert mixed.largest_grids()[8][0] == 38
    assert "other.tar" in mixed.largest_grids()[8][1]


def test_a_size_drawn_in_a_later_epoch_is_refused_by_its_batch_with_its_key(write: Write) -> None:
    (batch,) = PackedImageLoader(write(SIZES, [0, 1, 0, 1]), Packing(patch_size=8), batch_size=1, label="cls")
    with pytest.raises(ValueError, match=r"image 'k002' has 25 patches per side"):
        model().check(batch)
    with pytest.raises(ValueError, match=r"label 1 is not a class from 0 to 0 \(image 'k001'\)"):
        model(num_classes=1, max_grid=25).check(batch, labels=True)


def test_labels_outside_the_classes_are_found_in_the_index(write: Write, tmp_path: Path) -> None:
    train_shard = write([(64, 32)] * 4, [0, 1, None, 1])
    validation = write([(64, 32)] * 4, [0, None, 1, 7], name="validation.tar")
    wrong = r"label 7 is not a class from 0 to 1 \(image 'k003' in shard '.*validation\.tar'\); set num_classes"
    for run in (
        lambda: train(model(), never(validation), config=CONFIG),
        lambda: train(model(), never(train_shard), validation=never(validation), config=CONFIG),
        lambda: evaluate(model(), never(validation)),
        lambda: train_on_shards(
            scan(train_shard), scan(validation), PACKING, CONFIG, model=SMALL, out=tmp_path / "out"
        ),
    ):
        with pytest.raises(ValueError, match=wrong):
            run()
    with pytest.raises(ValueError, match=r"label -1 is not a class .*'k000'"):
        train(model(), never(write([(64, 32)] * 2, [-1, 1], name="negative.tar")), config=CONFIG)
    assert PackedImageLoader(train_shard, PACKING, batch_size=1, label="cls").label_range() == (
        (0, f"'k000' in shard {train_shard!r}"),
        (1, f"'k001' in shard {train_shard!r}"),
    )


def test_the_width_of_targets_and_the_channels_are_checked_first(write: Write) -> None:
    soft = write([(64, 32)] * 2, ['{"y": [0.5, 0.5, 0.0]}'] * 2, member="json")
    with pytest.raises(ValueError, match=r"labels have 3 targets per image, but the model has 2 outputs"):
        train(model(), never(soft, label="json:y"), config=CONFIG)
    grey = write([(64, 32)] * 2, [0, 1], name="grey.tar")
    with pytest.raises(ValueError, match=r"images have 1 channels, .*, but the model takes 3"):
        train(model(), never(grey, PACKING.replace(image_mode="L")), config=CONFIG)


def test_what_a_teacher_cannot_take_is_found_first(write: Write) -> None:
    shard = write(SIZES, [0, 1, 0, 1])
    student = model(max_grid=64)
    teacher = Distillation(model(patch_size=4, max_grid=32))
    with pytest.raises(ValueError, match=r"'k002' .* has 50 patches per side.* max_grid 32"):
        train(student, never(shard), config=CONFIG, objective=teacher)
    loader = PackedImageLoader(shard, PACKING, batch_size=1, label="cls")
    train(student, loader, config=CONFIG, objective=Distillation(model(patch_size=4, max_grid=50)))


def test_the_plan_of_a_packed_folder_is_checked(write: Write, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from patchnpack.cli.main import app

    shard = write(SIZES, [0, 1, 0, 1])
    packed = tmp_path / "packed"
    done = CliRunner().invoke(app, ["pack", shard, "-o", str(packed), "--seq-len=64", "--patch-size=8"])
    assert done.exit_code == 0, done.output
    with pytest.raises(ValueError, match=r"image 'k002' .* has 25 patches per side"):
        train(model(), Never(str(packed), batch_size=1), config=CONFIG)


def test_eval_reports_outputs_that_are_not_finite(
    write: Write, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from patchnpack.cli.main import app

    broken, shard = model(max_grid=32), write([(64, 32), (64, 64), (40, 40)], [0, 1, 0])
    with torch.no_grad():
        broken.get_parameter("head.bias")[1] = torch.inf
    loader = PackedImageLoader(shard, PACKING, batch_size=1, label="cls")
    table = predict(broken, loader, precision="float32")
    assert table["prediction"].to_pylist() == [None] * 3
    assert "3 of 3 images have outputs that are not finite, such as 'k00" in caplog.text
    save_checkpoint(tmp_path / "broken.pt", broken)
    flags = ["-o", str(tmp_path / "p.parquet"), "--device=cpu", "--precision=float32", "--seq-len=64"]
    done = CliRunner().invoke(app, ["eval", str(tmp_path / "broken.pt"), shard, *flags])
    assert "accuracy: 0.0000 on 3 labelled images" in done.output, done.output
