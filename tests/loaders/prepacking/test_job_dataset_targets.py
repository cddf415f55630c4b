"""Packed data sets of Python objects give the targets of the data set, whatever its masks and boxes are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from patchnpack import Boxes, Map, Mask, PackedImageLoader, Polygons
from patchnpack.loaders import ErrorPolicy, Job
from patchnpack.loaders.prepacking.verify import verify
from patchnpack.packer import Packing, RandomResizedCrop
from tests.images import encode_image
from tests.loaders.prepacking.annotated import TARGETS as OF_SHARDS
from tests.loaders.prepacking.annotated import annotated_image, targets_of, write_annotated

COUNT, WRONG_SIZE, MISSING = 24, 5, 11
PACKING = Packing(
    seq_len=48, patch_size=8, max_images=7, balance=4, flip=0.5, resolution=RandomResizedCrop(max_tokens=20)
)
LENIENT = ErrorPolicy(max_rate=0.5)
TARGETS: dict[str, Any] = {
    "mask": Mask("mask", fill=254),
    "depth": Map("depth", channels=2),
    "boxes": Boxes("boxes"),
    "outlines": Polygons("about:outlines"),
}


def mask_of(kind: str, i: int) -> Any:
    """A mask of classes, 0 to 11, as one of the types that items hold."""
    width, height = Image.open(io.BytesIO(annotated_image(i)[0])).size
    values = np.random.default_rng(i).integers(0, 12, (height, width + (i == WRONG_SIZE)))
    if i == MISSING:
        return None
    if kind == "bytes":
        return encode_image(values.astype(np.uint8), "PNG")
    if kind == "tensor":
        return torch.from_numpy(values)[None]
    if kind == "palette":
        image = Image.fromarray(values.astype(np.uint8))
        image.putpalette([(7 * k) % 256 for k in range(768)])
        return image
    if kind == "turned":  # some say their own orientation
        image = Image.fromarray(values.T.astype(np.uint8) if i % 2 else values.astype(np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if i % 2 else 1
        return Image.open(io.BytesIO(encode_image(image, "PNG", exif=exif)))
    pil: dict[str, Any] = {"L": np.uint8, "I": np.int32, "I;16": np.uint16, "1": np.bool_}
    if kind in pil:
        return Image.fromarray(values.astype(pil[kind]) if kind != "1" else values % 2 == 1)
    return values.astype(kind)


class Records:
    """Dicts of an upright image and what is annotated on it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> dict[str, Any]:
        image = Image.open(io.BytesIO(annotated_image(i)[0])).convert("RGB")
        image.info.clear()
        rng = np.random.default_rng(i)
        corners = np.sort(rng.uniform(0, 30, (i % 4, 2, 2)), axis=1).reshape(-1, 4)
        depth = rng.normal(size=(image.height, image.width, 2))
        return {
            "image": image,
            "mask": mask_of(self.kind, i),
            "depth": torch.from_numpy(depth).permute(2, 0, 1) if self.kind == "tensor" else depth,
            "boxes": corners if self.kind == "I" else corners.tolist(),
            "about": {"outlines": [[0, 0, 9, 0, 9, 9]] * (i % 3)},
        }


def compared(tmp_path: Path, source: Any, targets: dict[str, Any], **options: Any) -> None:
    read = {"batch_size": 2, "errors": LENIENT, "targets": targets, **options}
    loader = PackedImageLoader(source, PACKING, **read)
    expected = [targets_of(batch, list(targets)) for batch in loader]
    for store in ("images", "patches"):
        job: dict[str, Any] = {"errors": LENIENT, "targets": targets, "epochs": 1, "store": store, **options}
        out = str(tmp_path / store)
        assert Job(source=source, out=out, packing=PACKING, **job).run()
        assert verify(out).problems == []
        folder = PackedImageLoader(out, batch_size=2, errors=LENIENT)
        assert [targets_of(batch, list(targets)) for batch in folder] == expected
        assert folder.stats()["bad_images"] == loader.stats()["bad_images"]


KINDS = ("bytes", "tensor", "palette", "turned", "L", "I", "I;16", "1", "uint8", "int64", "float32")


@pytest.mark.parametrize("kind", KINDS)
def test_packed_data_set_gives_the_targets_of_its_items(tmp_path: Path, kind: str) -> None:
    compared(tmp_path, Records(kind), TARGETS)


def test_packed_hugging_face_data_set_gives_the_targets_of_its_rows(tmp_path: Path) -> None:
    rows = {
        "image": [{"bytes": annotated_image(i)[0], "path": None} for i in range(COUNT)],
        "mask": [
            {"bytes": annotated_image(i)[1].get("seg.png"), "path": None} if i != MISSING else None
            for i in range(COUNT)
        ],
        "boxes": [[[1.0, 2.0, 9.5 + i, 30.0]] * (i % 3) for i in range(COUNT)],
        "names": [[i % 2] * (i % 3) for i in range(COUNT)],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "mask": datasets.Image(),
            "boxes": datasets.List(datasets.List(datasets.Value("float32"))),
            "names": datasets.List(datasets.Value("int64")),
        }
    )
    source = datasets.Dataset.from_dict(rows, features=features)
    compared(tmp_path, source, {"mask": Mask("mask", fill=254), "boxes": Boxes("boxes", labels="names")}, image="image")


def test_targets_of_a_folder_are_those_of_its_shards(tmp_path: Path) -> None:
    from tests.images import read_tar

    for shard in write_annotated(tmp_path / "shards"):
        for name, data in read_tar(shard):
            path = tmp_path / "folder" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    names = ("mask", "token", "boxes", "outlines", "joints")
    compared(tmp_path, str(tmp_path / "folder"), {name: OF_SHARDS[name] for name in names})


def test_member_that_a_target_reads_may_be_an_extra_too(tmp_path: Path) -> None:
    compared(tmp_path, Records("int64"), TARGETS, extras=["boxes", "depth"])
    with pytest.raises(ValueError, match=r"the member 'mask' .* cannot be packed: .*PIL"):
        Job(
            source=Records("L"),
            out=str(tmp_path / "out"),
            packing=PACKING,
            targets=TARGETS,
            extras=["mask"],
            epochs=1,
        ).run()


def test_masks_that_items_name_by_their_paths_are_kept(tmp_path: Path) -> None:
    class Paths(Records):
        def __getitem__(self, i: int) -> dict[str, Any]:
            path = tmp_path / f"{i}.png"
            if i not in (MISSING, MISSING + 1):
                path.write_bytes(mask_of("bytes", i))
            return super().__getitem__(i) | {"mask": None if i == MISSING else str(path)}

    compared(tmp_path, Paths("L"), TARGETS)


def test_masks_that_a_table_names_are_refused_by_an_image_store(tmp_path: Path) -> None:
    lines = ["file_name,mask"]
    for i in range(6):
        data, members = annotated_image(i)
        (tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}").write_bytes(data)
        (tmp_path / f"{i}_mask.png").write_bytes(members["seg.png"])
        lines.append(f"{i}.{'jpg' if i % 2 else 'png'},{i}_mask.png")
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    job: dict[str, Any] = {"source": str(tmp_path / "train.csv"), "packing": PACKING, "epochs": 1}
    job["targets"] = {"mask": Mask("mask")}
    with pytest.raises(ValueError, match=r"reads the files that the column 'mask' names.*choose store='patches'"):
        Job(out=str(tmp_path / "images"), **job)
    assert Job(out=str(tmp_path / "patches"), store="patches", errors=LENIENT, **job).run()
    batches = list(PackedImageLoader(str(tmp_path / "patches"), batch_size=1))
    assert sum(batch.num_images for batch in batches) == 5
    assert (torch.cat([batch.targets["mask"][batch.segment_ids > 0] for batch in batches]) < 12).any()  # type: ignore[index]


def test_values_that_are_no_masks_are_refused(tmp_path: Path) -> None:
    class Wrong(Records):
        def __getitem__(self, i: int) -> dict[str, Any]:
            return super().__getitem__(i) | {"mask": {"classes": [1, 2]}}

    with pytest.raises(ValueError, match=r"the member 'mask' of .* cannot be packed: it is a dict.* or an array of"):
        Job(source=Wrong("L"), out=str(tmp_path / "out"), packing=PACKING, targets=TARGETS, epochs=1).run()


def test_image_store_without_targets_lacks_their_members(tmp_path: Path) -> None:
    Job(source=Records("L"), out=str(tmp_path / "out"), packing=PACKING, extras=["boxes"], epochs=1).run()
    assert next(iter(PackedImageLoader(str(tmp_path / "out"), targets={"boxes": Boxes("boxes")}, batch_size=1))).targets
    with pytest.raises(ValueError, match=r"target 'mask' asks for the member 'mask', which no sample has"):
        PackedImageLoader(str(tmp_path / "out"), targets=TARGETS, batch_size=1)
