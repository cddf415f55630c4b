"""What targets cannot be: bad ones are counted and quarantined, mistakes are refused before work starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack import Boxes, ErrorPolicy, FitTokens, Mask, Mixture, PackedImageLoader, Views, pack_stream
from tests.images import encode_image
from tests.loaders.targets.carried import tar_of, value_of
from tests.loaders.targets.samples import PACKING, TARGETS, mirror, objects_of, sample, tensor_of

GOOD = sample("g")


@pytest.fixture
def tar(tmp_path: Path) -> str:
    return tar_of(tmp_path / "a.tar", [sample(f"k{i}") for i in range(5)])


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
            {"targets": None, "transform": mirror},
            r"transform takes \(image, rng\).*a third argument is for targets, and there are none; give targets=",
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
