"""Packed folders give the targets of the source, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patchnpack import Boxes, Mask, PackedImageLoader
from patchnpack.loaders import BadDataError, ErrorPolicy, Job, read_manifest
from patchnpack.loaders.prepacking.verify import verify
from patchnpack.loaders.remote.storage import open_folder
from patchnpack.packer import (
    ConstantDrop,
    FitTokens,
    Native,
    PackedBatch,
    Packing,
    PatchSizes,
    RandomResizedCrop,
    Views,
)
from tests.loaders.prepacking.annotated import CLASSES, COUNT, MISSING, TARGETS, WRONG_SIZE, targets_of, write_annotated

Contents = Callable[[PackedBatch], tuple[object, ...]]
STORES = ["images", "patches"]
PACKING = Packing(seq_len=48, patch_size=8, max_images=7, balance=4, flip=0.5, vflip=0.3)
LENIENT = ErrorPolicy(max_rate=0.5)
BY_KEY = "key:([^/]+)/.*"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_annotated(tmp_path_factory.mktemp("annotated"))


def packed(out: Path, source: Any, packing: Packing = PACKING, **options: Any) -> str:
    given: dict[str, Any] = {"targets": TARGETS, "errors": LENIENT, "label": "cls", "seed": 3, "part_packs": 4}
    assert Job(source=source, out=str(out), packing=packing, **given | options).run()
    assert verify(out).problems == []
    return str(out)


def loader(source: Any, packing: Packing | None = None, **options: Any) -> PackedImageLoader:
    given: dict[str, Any] = {"batch_size": 2, "seed": 3, "errors": LENIENT} | options
    return PackedImageLoader(source, packing, **given)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"flip": 0.0, "vflip": 0.0}, {}),
        ({"resolution": Native(edge="crop")}, {"sample": BY_KEY}),
        ({"resolution": RandomResizedCrop(max_tokens=20), "token_drop": ConstantDrop(0.4)}, {"epochs": 2}),
        ({"views": Views((2, RandomResizedCrop(max_tokens=9)), (1, FitTokens(6)))}, {"epochs": 2}),
        ({"patch_size": PatchSizes((4, 8)), "resolution": FitTokens(30)}, {"epochs": 2, "block": 4}),
    ],
    ids=["plain", "samples", "crops", "views", "patch sizes"],
)
def test_targets_of_a_packed_folder_are_those_of_the_shards(
    shards: list[str], tmp_path: Path, contents: Contents, store: Any, changes: Any, options: Any
) -> None:
    packing = PACKING.replace(**changes)
    out = packed(tmp_path / "out", shards, packing, store=store, **options)
    read = {"sample": options.get("sample"), "block": options.get("block")}
    source = loader(shards, packing, targets=TARGETS, label="cls", **read)
    folder = loader(out)
    for _ in range(options.get("epochs", 1)):
        expected, found = list(source), list(folder)
        assert len(expected) > 1
        assert list(map(contents, found)) == list(map(contents, expected))
        assert list(map(targets_of, found)) == list(map(targets_of, expected))
    for key in ("images", "bad_images", "left_out"):
        assert folder.stats()[key] == source.stats()[key]
    assert source.stats()["bad_images"] >= 2


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"part_packs": 1}], ids=["compressed", "parts of a pack"])
def test_packs_that_are_copied_have_the_targets_of_mapped_ones(
    shards: list[str], tmp_path: Path, options: dict[str, Any]
) -> None:
    mapped = packed(tmp_path / "mapped", shards, store="patches", part_packs=64)
    copied = packed(tmp_path / "copied", shards, store="patches", **options)
    found, expected = (list(map(targets_of, loader(one, batch_size=3))) for one in (copied, mapped))
    assert found == expected
    for one in (mapped, copied):  # shuffled packs, and empty ones of ranks that have fewer
        of_ranks = [loader(one, batch_size=2, shuffle=True, rank=rank, world_size=3) for rank in range(3)]
        batches = [list(each) for each in of_ranks]
        assert len({len(each) for each in batches}) == 1
        images = [image for each in batches for batch in each for image in range(batch.num_images)]
        assert len(images) == COUNT - 2
        for batch in (batch for each in batches for batch in each):
            targets_of(batch)


def test_bad_targets_are_counted_when_patches_are_packed(shards: list[str], tmp_path: Path) -> None:
    out = packed(tmp_path / "patches", shards, store="patches")
    bad = read_manifest(open_folder(out)).bad
    keys = [f"s{i // 3}/{i:03d}" for i in (WRONG_SIZE, MISSING)]
    assert [(row["key"], row["stage"]) for row in sorted(bad, key=lambda row: row["key"])] == [
        (key, "targets") for key in keys
    ]
    assert "pixels, and the image" in bad[0]["reason"] + bad[1]["reason"]
    with pytest.raises(BadDataError, match=r"bad image .*its \.seg\.png member"):
        packed(tmp_path / "strict", shards, store="patches", errors=ErrorPolicy(on_error="raise"))
    images = loader(packed(tmp_path / "images", shards))
    assert [key for batch in images for pack in batch.keys for key in pack if key in keys] == []
    assert images.stats()["bad_images"] == 2


def test_image_store_takes_other_targets(shards: list[str], tmp_path: Path) -> None:
    out = packed(tmp_path / "out", shards, targets=None)
    assert next(iter(loader(out))).targets == {}
    other = {"seg": Mask("seg.png", fill=0, dtype="int32")}
    expected = loader(shards, PACKING, targets=other)
    assert [targets_of(batch, ["seg"]) for batch in loader(out, targets=other)] == [
        targets_of(batch, ["seg"]) for batch in expected
    ]
    with pytest.raises(ValueError, match=r"target 'seg' asks for the member 'sge.png', which no sample has"):
        loader(out, targets={"seg": Mask("sge.png")})


def test_patch_store_gives_some_of_its_targets_and_refuses_others(shards: list[str], tmp_path: Path) -> None:
    out = packed(tmp_path / "out", shards, store="patches")
    some = {"mask": TARGETS["mask"], "depth": TARGETS["depth"], "token": TARGETS["token"]}
    batches, all_of = list(loader(out, targets=some)), list(loader(out))
    for batch, whole in zip(batches, all_of, strict=True):
        wanted = targets_of(whole)
        assert {name: value for name, value in targets_of(batch, list(some)).items() if name != "fill"} == {
            name: wanted[name] for name in some
        }
    for other in ({"mask": Mask("seg.png", fill=0)}, {"seg": TARGETS["mask"]}, {"boxes": Boxes("json:objects.bbox")}):
        with pytest.raises(
            ValueError, match=r"targets asks for .*, and the packs in '.*' hold the targets mask=Mask\("
        ):
            loader(out, targets=other)
    without = packed(tmp_path / "without", shards, store="patches", targets=None)
    with pytest.raises(ValueError, match=r"hold the targets none; leave it out, or pack again with it"):
        loader(without, targets={"mask": TARGETS["mask"]})


def test_functions_are_refused_before_anything_is_written(shards: list[str], tmp_path: Path) -> None:
    decode = {"mask": Mask("seg.png", decode=lambda data: None)}  # type: ignore[arg-type, return-value]
    with pytest.raises(
        ValueError, match=r"targets\['mask'\] has decode=.*, a function, .* give the target to the loader"
    ):
        Job(source=shards, out=str(tmp_path / "out"), packing=PACKING, targets=decode)
    assert not (tmp_path / "out").exists()


def test_folder_of_other_targets_is_not_continued(shards: list[str], tmp_path: Path) -> None:
    packed(tmp_path / "out", shards, store="patches")
    with pytest.raises(ValueError, match=r"holds other packs: targets\.mask"):
        Job(
            source=shards,
            out=str(tmp_path / "out"),
            packing=PACKING,
            store="patches",
            targets=TARGETS | {"mask": Mask("seg.png", fill=253)},
            errors=LENIENT,
            label="cls",
            seed=3,
            part_packs=4,
        )


def test_recipe_gives_the_targets_back(shards: list[str], tmp_path: Path) -> None:
    recipe = read_manifest(open_folder(packed(tmp_path / "out", shards))).recipe
    targets: dict[str, Any] = recipe.targets
    assert targets["boxes"] == TARGETS["boxes"]
    assert targets["boxes"].classes == CLASSES
    assert targets["token"] == Mask("seg.png", dtype="int64", fill=-1, per_token="majority")
    assert list(recipe.targets) == list(TARGETS)


def test_damaged_target_is_a_problem(shards: list[str], tmp_path: Path) -> None:
    out = Path(packed(tmp_path / "out", shards, store="patches"))
    batch = next(iter(loader(out, batch_size=1)))
    part = min((out / "parts").iterdir())
    data, values = bytearray(part.read_bytes()), batch.targets["mask"].numpy().tobytes()  # type: ignore[union-attr]
    data[data.index(values) + 7] ^= 1
    part.write_bytes(data)
    assert any("its digest differs" in problem for problem in verify(out).problems)


def test_classes_called_kind_can_be_packed(shards: list[str], tmp_path: Path) -> None:
    out = packed(tmp_path / "out", shards, targets=None, classes={str(i): i for i in range(4)} | {"kind": 4, "4": 5})
    assert loader(out).classes == {"0": 0, "1": 1, "2": 2, "3": 3, "kind": 4, "4": 5}


def test_targets_lie_in_the_map_and_writes_reach_neither_file_nor_next_epoch(shards: list[str], tmp_path: Path) -> None:
    folder = loader(packed(tmp_path / "out", shards, store="patches", part_packs=64))
    before = list(map(targets_of, folder))
    targets: dict[str, Any] = {}
    for batch in folder:
        targets = dict(batch.targets)
        targets["mask"].fill_(3)
        targets["boxes"].boxes.fill_(0)
    # No copy: two batches of consecutive packs share one map.
    assert targets["mask"].numpy().base is not None
    assert list(map(targets_of, folder)) == before
