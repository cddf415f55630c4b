"""Targets in loaders and streams: sources of every kind, transforms, views, bad targets, mistakes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from patchnpack import (
    Boxes,
    ConstantDrop,
    ErrorPolicy,
    FitTokens,
    Keypoints,
    Map,
    Mask,
    Mixture,
    Native,
    PackedBatch,
    PackedImageLoader,
    Packing,
    RandomResizedCrop,
    Views,
    pack_stream,
)
from patchnpack.loaders import Objects
from patchnpack.loaders.targets import dense
from patchnpack.packer.batch.objects import PackedObjects
from tests.images import encode_image
from tests.loaders.conftest import contents
from tests.loaders.targets.carried import tar_of, value_of

SIZE = 24, 16
PACKING = Packing(seq_len=12, patch_size=8, max_images=4)
TARGETS: dict[str, Any] = {
    "seg": Mask("seg.png", num_classes=10),
    "token": Mask("seg.png", per_token="majority"),
    "depth": Map("depth.png"),
    "boxes": Boxes("json:boxes", labels="json:classes", num_classes=5),
    "points": Keypoints("json:points"),
}


def sample(key: str, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """A sample whose mask holds 1 in the left half of the image and 2 in the right, under one box each."""
    width, height = size
    rng = np.random.default_rng(len(key))
    mask = np.repeat(np.array([[1, 2]], np.uint8), width // 2, axis=1).repeat(height, axis=0)
    half = width // 2
    return {
        "__key__": key,
        "png": encode_image(rng.integers(0, 256, (height, width, 3), np.uint8), "PNG"),
        "seg.png": encode_image(mask, "PNG"),
        "depth.png": encode_image(mask.astype(np.uint16) * 1000, "PNG"),
        "json": value_of(
            {
                "boxes": [[0, 0, half, height], [half, 0, width, height]],
                "classes": [1, 2],
                "points": [[1, 1], [width - 1, height - 1]],
            }
        ),
    }


@pytest.fixture
def tar(tmp_path: Path) -> str:
    return tar_of(tmp_path / "a.tar", [sample(f"k{i}") for i in range(5)])


def objects_of(batch: PackedBatch, name: str) -> PackedObjects:
    objects = batch.targets[name]
    assert isinstance(objects, PackedObjects)
    return objects


def tensor_of(batch: PackedBatch, name: str) -> torch.Tensor:
    tensor = batch.targets[name]
    assert isinstance(tensor, torch.Tensor)
    return tensor


def all_of(batch: PackedBatch) -> tuple[Any, ...]:
    """All contents of a batch, with its targets."""
    targets = {
        name: value.numpy().tobytes()
        if isinstance(value, torch.Tensor)
        else [value.counts_list, *(None if one is None else one.tolist() for one in (value.boxes, value.points))]
        for name, value in batch.targets.items()
    }
    return *contents(batch), targets


def test_a_batch_holds_the_targets_of_its_images(tar: str) -> None:
    loader = PackedImageLoader(tar, PACKING, batch_size=2, image="png", targets=TARGETS)
    assert "; targets: seg, token, depth, boxes, points" in repr(loader)
    batch, *_ = loader
    seg, token, depth = (tensor_of(batch, name) for name in ("seg", "token", "depth"))
    assert (seg.dtype, seg.shape) == (torch.uint8, (2, 12, 64))
    assert (token.dtype, token.shape) == (torch.uint8, (2, 12))
    assert (depth.dtype, depth.shape) == (torch.float32, (2, 12, 64))
    # In the middle patch, at x from 8, the left half of the image ends after 4 of 8 pixels.
    assert token[0, :6].tolist() == [1, 1, 2, 1, 1, 2]
    assert seg[0, 1].reshape(8, 8)[3].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert torch.equal(depth[0, :6], seg[0, :6] * 1000.0)
    boxes = objects_of(batch, "boxes")
    assert boxes.of(1).boxes.tolist() == [[0, 0, 12, 16], [12, 0, 24, 16]]  # type: ignore[union-attr]
    assert boxes.of(1).labels.tolist() == [1, 2]
    assert boxes.counts[0].tolist() == [2, 2, 0, 0]
    assert objects_of(batch, "points").of(0).points.tolist() == [[1, 1], [23, 15]]  # type: ignore[union-attr]


def _of_stream(tmp_path: Path, samples: list[dict[str, Any]]) -> Iterable[PackedBatch]:
    return pack_stream(samples, PACKING, batch_size=2, image="png", targets=TARGETS)


def _of_objects(tmp_path: Path, samples: list[dict[str, Any]]) -> Iterable[PackedBatch]:
    items = []
    for each in samples:
        record = json.loads(each["json"])
        items.append(
            {
                "image": each["png"],
                "seg.png": _picture(each["seg.png"]),
                "depth.png": np.asarray(_picture(each["depth.png"])),
                "json": {name: np.array(value) for name, value in record.items()},
            }
        )
    return PackedImageLoader(items, PACKING, batch_size=2, image="image", targets=TARGETS)


def _of_hugging_face(tmp_path: Path, samples: list[dict[str, Any]]) -> Iterable[PackedBatch]:
    datasets = pytest.importorskip("datasets")
    columns = {
        "image": [{"bytes": each["png"], "path": None} for each in samples],
        "seg.png": [{"bytes": each["seg.png"], "path": None} for each in samples],
        "depth.png": [{"bytes": each["depth.png"], "path": None} for each in samples],
        "json": [json.loads(each["json"]) for each in samples],
    }
    dataset = datasets.Dataset.from_dict(columns)
    for name in ("image", "seg.png", "depth.png"):
        dataset = dataset.cast_column(name, datasets.Image())
    return PackedImageLoader(dataset, PACKING, batch_size=2, image="image", targets=TARGETS)


def _picture(data: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("make", [_of_stream, _of_objects, _of_hugging_face])
def test_targets_are_those_of_shards_whatever_the_source(
    make: Callable[[Path, list[dict[str, Any]]], Iterable[PackedBatch]], tmp_path: Path
) -> None:
    samples = [sample(f"k{i}", (24 + 8 * i, 16)) for i in range(4)]
    shards = PackedImageLoader(tar_of(tmp_path / "a.tar", samples), PACKING, batch_size=2, image="png", targets=TARGETS)
    expected = [all_of(batch)[-1] for batch in shards]
    found = [all_of(batch)[-1] for batch in make(tmp_path, samples)]
    assert found == expected
    assert len(found) >= 1


def test_targets_are_the_same_for_any_number_of_threads_and_workers(tar: str) -> None:
    packing = PACKING.replace(flip=0.5, token_drop=ConstantDrop(0.3))

    def loader(threads: int) -> PackedImageLoader:
        return PackedImageLoader(
            tar, packing, batch_size=1, shuffle=True, image="png", targets=TARGETS, num_threads=threads
        )

    expected = [all_of(batch) for batch in loader(1)]
    assert [all_of(batch) for batch in loader(3)] == expected
    batches = DataLoader(loader(1).as_dataset(), batch_size=None, num_workers=2)
    assert [all_of(batch) for batch in batches] == expected
    assert [all_of(batch) for batch in pickle.loads(pickle.dumps(loader(1).as_dataset()))]  # noqa: S301 - our own == expected


def test_views_are_cut_from_one_decoded_target(tar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    read = dense.read_values

    def counted(reader: Any, member: str, *args: Any, **options: Any) -> Any:
        calls.append(member)
        return read(reader, member, *args, **options)

    monkeypatch.setattr("patchnpack.loaders.targets.mask.read_values", counted)
    views = Views((1, Native(max_tokens=6)), (2, RandomResizedCrop(scale=(0.2, 0.9), max_tokens=3)))
    loader = PackedImageLoader(
        tar, PACKING.replace(views=views), batch_size=8, image="png", targets={"seg": TARGETS["seg"]}
    )
    images = sum(batch.num_images for batch in loader)
    assert (images, len(calls)) == (15, 5)


def test_samples_joined_by_key_have_the_targets_of_each_image(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "a.tar", [sample(f"{clip}_{i}") for clip in "ab" for i in range(2)])
    loader = PackedImageLoader(
        tar, PACKING, batch_size=2, image="png", sample=r"key:(.)_\d", targets={"boxes": TARGETS["boxes"]}
    )
    (batch,) = loader
    assert batch.samples[batch.image_mask].tolist() == [1, 1, 1, 1]
    assert objects_of(batch, "boxes").counts_list == [2] * 4


def _mirror(image: np.ndarray, rng: np.random.Generator, targets: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    width = image.shape[1]
    moved = dict(targets)
    for name in ("seg", "token", "depth"):
        moved[name] = targets[name][:, ::-1]
    for name in ("boxes", "points"):
        moved[name] = targets[name].moved(lambda points: points * np.array([-1, 1]) + np.array([width, 0]))
    return image[:, ::-1], moved


def test_a_transform_of_three_arguments_moves_targets_with_its_image(tar: str) -> None:
    mirrored = PackedImageLoader(tar, PACKING, batch_size=2, image="png", targets=TARGETS, transform=_mirror)
    flipped = PackedImageLoader(tar, PACKING.replace(flip=1.0), batch_size=2, image="png", targets=TARGETS)
    for one, other in zip(mirrored, flipped, strict=True):
        assert torch.equal(one.patches, other.patches)
        assert all_of(one)[-1] == all_of(other)[-1]


def test_a_transform_of_two_arguments_gets_the_image_alone(tar: str) -> None:
    loader = PackedImageLoader(
        tar, PACKING, batch_size=2, image="png", targets=TARGETS, transform=lambda image, rng: 255 - image
    )
    plain = PackedImageLoader(tar, PACKING, batch_size=2, image="png", targets=TARGETS)
    for one, other in zip(loader, plain, strict=True):
        assert all_of(one)[-1] == all_of(other)[-1]
        assert not torch.equal(one.patches, other.patches)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda image, rng, targets: image, r"returned a ndarray; it must return \(image, targets\)"),
        (lambda image, rng, targets: (image, {}), r"transform returned the targets \[\]; it must return the dict"),
        (
            lambda image, rng, targets: (image, targets | {"seg": targets["seg"][:8]}),
            r"transform returned uint8 \(8, 24\) for target 'seg', which is uint8 \(16, 24\); it must keep type and sh",
        ),
        (
            lambda image, rng, targets: (image, targets | {"boxes": []}),
            "transform returned a list for target 'boxes', not Objects",
        ),
    ],
)
def test_a_transform_that_loses_a_target_is_raised_with_its_image(tar: str, transform: Any, message: str) -> None:
    loader = PackedImageLoader(tar, PACKING, batch_size=2, image="png", targets=TARGETS, transform=transform)
    with pytest.raises(ValueError, match=message) as caught:
        list(loader)
    assert any("raised by transform for the image with key 'k" in note for note in caught.value.__notes__)


def test_what_a_transform_moves_out_of_the_image_is_left_out(tar: str) -> None:
    def away(image: Any, rng: Any, targets: dict[str, Any]) -> tuple[Any, dict[str, Objects]]:
        return image, {"boxes": targets["boxes"].moved(lambda points: points + np.array([12, 0]))}

    loader = PackedImageLoader(
        tar, PACKING, batch_size=2, image="png", targets={"boxes": TARGETS["boxes"]}, transform=away
    )
    batch, *_ = loader
    assert objects_of(batch, "boxes").of(0).boxes.tolist() == [[12, 0, 24, 16]]  # type: ignore[union-attr]


GOOD = sample("g")
_BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing mask": ({"seg.png": None}, "target 'seg': it has no .seg.png member"),
    "mask of another size": (
        {"seg.png": encode_image(np.ones((16, 20), np.uint8), "PNG")},
        "target 'seg': its .seg.png member cannot be used: it has 20x16 pixels, and the image 24x16; make both of one",
    ),
    "class beyond the head": (
        {"seg.png": encode_image(np.full((16, 24), 10, np.uint8), "PNG")},
        "it holds 10 at (0, 0), which is not among the values that num_classes 10 allows (fill is 255)",
    ),
    "box class beyond the head": ({"json": value_of({"boxes": [[0, 0, 1, 1]], "classes": [5]})}, "num_classes is 5"),
    "NaN": (
        {"json": b'{"boxes": [[0, 0, 1, NaN]], "classes": [1], "points": []}'},
        "must be four finite numbers, xyxy",
    ),
    "not JSON": ({"json": b"{"}, "target 'boxes': its .json member cannot be read: "),
    "missing field": ({"json": b"{}"}, "'boxes' of its .json member: there is no field 'boxes'"),
}


@pytest.mark.parametrize("kind", _BAD)
@pytest.mark.parametrize("is_stream", [False, True])
def test_an_image_with_a_bad_target_is_counted_and_quarantined(kind: str, is_stream: bool, tmp_path: Path) -> None:
    change, reason = _BAD[kind]
    bad = {name: data for name, data in (sample("bad") | change).items() if data is not None}
    samples, file = [sample("a"), bad, sample("c")], tmp_path / "bad.jsonl"
    options: dict[str, Any] = {"batch_size": 2, "image": "png", "targets": TARGETS}
    options["errors"] = ErrorPolicy(quarantine=file)
    loader: Any
    if is_stream:
        loader = pack_stream(samples, PACKING, **options)
    else:
        loader = PackedImageLoader(tar_of(tmp_path / "a.tar", samples), PACKING, **options)
    batches = list(loader)
    assert [key for batch in batches for keys in batch.keys for key in keys] == ["a", "c"]
    assert loader.stats()["bad_by_stage"] == {"targets": 1}
    (line,) = map(json.loads, file.read_text().splitlines())
    assert (line["key"], line["stage"]) == ("bad", "targets")
    assert reason in line["reason"]
    for batch in batches:
        assert (tensor_of(batch, "seg")[batch.segment_ids == 0] == 255).all()
        assert (tensor_of(batch, "depth")[batch.segment_ids == 0] == 0).all()
        assert objects_of(batch, "boxes").counts[batch.image_mask].tolist() == [2] * batch.num_images
        assert (objects_of(batch, "boxes").counts[~batch.image_mask] == 0).all()


@pytest.mark.parametrize("on_bad", ["sample", "image"])
def test_a_bad_target_leaves_out_all_views_and_is_recorded_once(on_bad: Any, tmp_path: Path) -> None:
    bad = sample("bad") | {"seg.png": b"no image"}
    tar = tar_of(tmp_path / "a.tar", [sample("a"), bad, sample("c")])
    views = Views((1, FitTokens(4)), (2, FitTokens(2)))
    loader = PackedImageLoader(
        tar,
        PACKING.replace(views=views),
        batch_size=2,
        image="png",
        targets=TARGETS,
        errors=ErrorPolicy(on_bad=on_bad),
    )
    assert [key for batch in loader for keys in batch.keys for key in keys] == ["a"] * 3 + ["c"] * 3
    stats = loader.stats()
    assert (stats["bad_images"], stats["left_out"], stats["bad_samples"]) == (1, 2, 1)


def test_a_mixture_needs_the_members_of_targets_in_each_source(tmp_path: Path, tar: str) -> None:
    masked = {"seg": TARGETS["seg"]}
    other = tar_of(tmp_path / "b.tar", [{"__key__": f"b{i}", "png": GOOD["png"]} for i in range(3)])
    with pytest.raises(
        ValueError, match=r"asks for the member 'seg.png', which no sample of source 'b' has, and each so"
    ):
        PackedImageLoader(
            Mixture({"a": (tar, 0.5), "b": (other, 0.5)}), PACKING, batch_size=2, image="png", targets=masked
        )
    items = [{"png": GOOD["png"], "seg.png": np.full((16, 24), 7, np.uint8)} for _ in range(5)]
    mixture = Mixture({"a": (tar, 0.5), "b": (items, 0.5)}, images_per_epoch=10)
    loader = PackedImageLoader(mixture, PACKING, batch_size=2, image="png", targets=masked)
    values = torch.cat([tensor_of(batch, "seg")[batch.segment_ids > 0].flatten() for batch in loader])
    assert set(values.tolist()) == {1, 2, 7}
    with pytest.raises(ValueError, match=r"target 'seg' asks for 'seg.png', which no row of data set list has"):
        PackedImageLoader(
            Mixture({"a": (tar, 0.5), "b": ([{"png": GOOD["png"]}] * 3, 0.5)}),
            PACKING,
            batch_size=2,
            image="png",
            targets=masked,
        )


def test_a_state_names_its_targets(tar: str) -> None:
    def loader(targets: Any) -> PackedImageLoader:
        return PackedImageLoader(tar, PACKING, batch_size=1, image="png", targets=targets)

    state = loader({"seg": Mask("seg.png")}).state_dict()
    loader({"seg": Mask("seg.png")}).load_state_dict(state)
    with pytest.raises(ValueError, match=r"saved with targets.seg = Mask.*fill=255.*this loader has Mask.*fill=0"):
        loader({"seg": Mask("seg.png", fill=0)}).load_state_dict(state)
    assert not [name for name in loader(None).state_dict()["fingerprint"] if "target" in name]


_ONE_MASK = {"seg": Mask("seg.png")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": [Mask("seg.png")]}, "targets is .Mask.* give a dict from a name of your own to a target"),
        ({"targets": {"seg": "seg.png"}}, r"targets\['seg'\] is 'seg.png'; give a target of it: Mask\('seg.png'\)"),
        ({"targets": {"seg": Mask}}, r"targets\['seg'\] is the class Mask; call it: Mask\('seg.png'\)"),
        ({"targets": {1: Mask("seg.png")}}, "targets has the name 1; each must be a text"),
        (
            {"targets": {"seg": Mask("mask.png")}},
            "target 'seg' asks for the member 'mask.png', which no sample has; the",
        ),
        (
            {"targets": None, "transform": _mirror},
            r"transform takes \(image, rng\).*_mirror takes targets as well, and there are none: give targets=",
        ),
    ],
)
def test_a_mistake_in_targets_is_refused_before_work_starts(tar: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedImageLoader(tar, PACKING, batch_size=2, image="png", **options)


def test_targets_of_images_that_lie_beside_each_other_are_refused(tmp_path: Path) -> None:
    several = sample("k") | {"p1.png": GOOD["png"], "p2.png": GOOD["png"]}
    tar = tar_of(tmp_path / "a.tar", [several])
    with pytest.raises(ValueError, match=r"samples hold several images beside each other.*sample='key:REGEX'"):
        PackedImageLoader(tar, PACKING, batch_size=2, image="png", sample="members", targets={"b": Boxes("json:boxes")})
    with pytest.raises(ValueError, match="samples hold several images beside each other"):
        pack_stream([several], PACKING, batch_size=2, image="png", sample="members", targets=_ONE_MASK)
    items = [{"image": [GOOD["png"], GOOD["png"]], "seg.png": GOOD["seg.png"]}]
    with pytest.raises(ValueError, match="samples hold several images beside each other"):
        PackedImageLoader(items, PACKING, batch_size=2, image="image", sample="members", targets=_ONE_MASK)


def test_a_stream_without_the_member_of_a_target_is_refused_at_its_end() -> None:
    stream = pack_stream([{"__key__": "a", "png": GOOD["png"]}], PACKING, batch_size=1, image="png", targets=_ONE_MASK)
    with pytest.raises(
        ValueError, match=r"none of the first 1 samples has what the member 'seg.png' of targets= asks for"
    ):
        list(stream)
    pairs = pack_stream([(GOOD["png"], 1)], PACKING, batch_size=1, targets=_ONE_MASK)
    with pytest.raises(ValueError, match="is a pair, whose second item is its label; targets= names members of a dict"):
        list(pairs)
