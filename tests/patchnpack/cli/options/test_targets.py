from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from patchnpack import Boxes, Keypoints, Map, Mask, Polygons
from patchnpack.cli.options.targets import TARGET_FLAGS, make_targets


@pytest.mark.parametrize(
    ("kind", "text", "target"),
    [
        ("mask", "m=seg.png", Mask("seg.png")),
        (
            "mask",
            "m=seg.png,fill=-1,dtype=int16,num_classes=21,per_token=majority,upright=true",
            Mask("seg.png", fill=-1, dtype="int16", num_classes=21, per_token="majority", upright=True),
        ),
        ("map", "m=depth.npy,channels=2,fill=0.5", Map("depth.npy", channels=2, fill=0.5)),
        ("map", "m=d.png,dtype=uint16,interpolation=nearest", Map("d.png", dtype="uint16", interpolation="nearest")),
        (
            "boxes",
            "m=json:objects.bbox,format=xywh,labels=json:objects.name,min_visible=0.25,normalized=true",
            Boxes(
                "json:objects.bbox",
                format="xywh",
                labels="json:objects.name",
                min_visible=0.25,
                normalized=True,
            ),
        ),
        ("polygons", "m=json:rings,upright=false", Polygons("json:rings")),
        ("keypoints", "m=json:points,format=xyv", Keypoints("json:points", format="xyv")),
    ],
)
def test_target_is_parsed(kind: str, text: str, target: Any) -> None:
    assert make_targets(**{kind: [text]}) == {"m": target}


def test_targets_of_all_flags_come_together_in_order(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("owl\ncat\n")
    found = make_targets(
        mask=["a=seg.png", "b=other.png"],
        boxes=[f"c=json:b,labels=json:n,classes={tmp_path / 'classes.txt'}"],
        map=None,
    )
    assert list(found) == ["a", "b", "c"]
    assert found["c"].classes == {"owl": 0, "cat": 1}  # type: ignore[attr-defined]
    assert math.isnan(make_targets(map=["m=d.npy,fill=nan"])["m"].fill)  # type: ignore[attr-defined]


def test_decode_is_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_masks.py").write_text("def decode(data):\n    return data\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    mask: Any = make_targets(mask=["m=seg.png,decode=my_masks:decode"])["m"]
    assert mask.decode(b"x") == b"x"


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("mask", "seg.png", r"--mask is 'seg\.png'; give NAME=MEMBER\[,KEY=VALUE\.\.\.\], such as mask=seg\.png,fill"),
        ("mask", "=seg.png", r"give NAME=MEMBER"),
        ("boxes", "b=", r"--boxes is 'b='; give NAME=MEMBER.*format=xywh"),
        ("mask", "m=fill=3", r"give NAME=MEMBER"),
        ("mask", "m=seg.png,fil=3", r"it has 'fil=3', which is not one of decode, dtype, fill, .* with a value"),
        ("mask", "m=seg.png,fill", r"it has 'fill', which is not one of"),
        ("mask", "m=seg.png,", r"it has '', which is not one of"),
        ("mask", "m=seg.png,fill=1,fill=2", r"it has 'fill=2', twice; give KEY=VALUE, each once"),
        ("mask", "m=seg.png,fill=x", r"--mask is 'm=seg\.png,fill=x': fill is 'x'; it must be a number"),
        ("mask", "m=seg.png,fill=1.5", r"fill is 1\.5"),
        ("mask", "m=seg.png,fill=256", r"fill is 256, which dtype 'uint8' does not hold; give 0 to 255"),
        ("mask", "m=seg.png,upright=yes", r"upright is 'yes'; it must be true or false"),
        ("map", "m=d.png,dtype=int8", r"dtype is 'int8'"),
        ("mask", "m=seg.png,decode=nothing", r"--mask is .*: decode is 'nothing'; give MODULE:FUNCTION"),
        ("boxes", "b=json:o,labels=json:n,classes=nowhere.txt", r"--boxes is .*nowhere\.txt"),
        ("boxes", "b=json:o,format=coco", r"format is 'coco'; it must be one of"),
    ],
)
def test_mistakes_are_named_with_value_and_remedy(kind: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_targets(**{kind: [text]})


def test_name_that_comes_again_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--boxes is 'm=json:b', and 'm' is a target already; give each a name"):
        make_targets(mask=["m=seg.png"], boxes=["m=json:b"])


@pytest.mark.parametrize("kind", TARGET_FLAGS)
def test_example_in_the_help_is_a_target(kind: str) -> None:
    text = TARGET_FLAGS[kind].help.partition("such as ")[2].partition(";")[0]
    assert len(make_targets(**{kind: [text]})) == 1
