"""Packing data sets of Python objects: the folder gives the batches that the data set gives."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from patchnpack.engines import run_local
from patchnpack.loaders import BadDataError, BadImage, ErrorPolicy, Job, Mixture, PackedImageLoader, read_manifest
from patchnpack.loaders.prepacking.unpack import unpack
from patchnpack.loaders.prepacking.verify import verify
from patchnpack.loaders.remote.storage import open_folder
from patchnpack.packer import BetaDrop, PackedBatch, Packing, PatchSizes, RandomResizedCrop, SampleSide
from tests.loaders.datasets.collections_of_images import CLASSES, Items, Pairs, Photos
from tests.loaders.loading import keys_of
from tests.loaders.prepacking.folders import PACKING, written

datasets.disable_progress_bars()

Contents = Callable[[PackedBatch], tuple[object, ...]]
STORES = ("images", "patches")
PHOTOS = Photos()
COUNT = len(PHOTOS)


def opened(i: int) -> Image.Image:
    return Image.open(io.BytesIO(PHOTOS.data[i]))


class Records:
    """Dicts with members of every type that a folder keeps, in a class that can be sent to other processes."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {
            "photo": PHOTOS.pixels(i),
            "species": CLASSES[PHOTOS.labels[i]],
            "target": np.array([i, 0.1 * i, -1], np.float32),
            "caption": PHOTOS.captions[i] if i % 4 else None,
            "raw": bytes([i]),
            "about": {"id": i, "tags": ["a", 1.5, None], "nested": {"b": True}},
            "count": np.int64(i),
            "boxes": np.arange(4 * i, dtype=np.float64).reshape(i, 4),
        }


class Tensors:
    """(uint8 tensor (C, height, width), label) of the photos."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(PHOTOS.pixels(i).copy()).permute(2, 0, 1), torch.tensor(PHOTOS.labels[i])


def lists_of_images() -> datasets.Dataset:
    """A Hugging Face data set whose rows hold 0 to 3 images."""
    columns = {"pages": [[{"bytes": PHOTOS.data[i], "path": None}] * (i % 4) for i in range(20)], "label": [*range(20)]}
    features = datasets.Features({"pages": datasets.List(datasets.Image()), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict(columns, features=features)


def sources(folder: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Each kind of data set with the options that it is loaded and packed with."""
    hub = PHOTOS.hugging_face()
    pairs: Any = Pairs(PHOTOS)
    tensors: Any = Tensors()
    sizes = np.array([PHOTOS.pixels(i).shape[1::-1] for i in range(COUNT)])
    all_members = ["caption", "raw", "about", "count", "boxes", "target", "species"]
    return {
        "hugging face": (hub, {"label": "label", "extras": ["caption", "label"]}),
        "hugging face, named classes": (hub, {"label": "label", "classes": ["owl", "cat", "dog"], "extras": ["label"]}),
        "hugging face, shuffled": (hub.shuffle(seed=1).select(range(30)), {"label": "label"}),
        "hugging face, sizes given": (hub, {"label": "label", "sizes": sizes}),
        "hugging face, lists": (lists_of_images(), {"label": "label", "extras": ["label"]}),
        "folder": (PHOTOS.folder(folder / "photos"), {}),
        "pairs": (pairs, {"extras": ["label"], "fingerprint": "photos"}),
        "records": (Records(), {"label": "species", "classes": CLASSES, "extras": all_members}),
        "records with targets": (Records(), {"label": "target", "extras": ["caption"]}),
        "records without label": (Records(), {}),
        "tensors": (tensors, {}),
        "a list": ([(data, i) for i, data in enumerate(PHOTOS.data)], {}),
        "subsets": (ConcatDataset([Subset(pairs, [3, 1, 7]), Subset(tensors, range(9))]), {}),
    }


def plain(value: Any) -> Any:
    """A value in which arrays are comparable."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return {name: plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def all_of(contents: Contents, loader: Any) -> list[Any]:
    return [plain(contents(batch)) for batch in loader]


def pack(source: Any, out: Path, options: dict[str, Any], packing: Packing = PACKING, **changes: Any) -> Job:
    job = Job(**{"source": source, "out": str(out), "packing": packing, "part_packs": 3, **options, **changes})
    assert job.run()
    return job


KINDS = (
    *("hugging face", "hugging face, named classes", "hugging face, shuffled", "hugging face, sizes given"),
    *("hugging face, lists", "folder", "pairs", "records", "records with targets", "records without label"),
    *("tensors", "a list", "subsets"),
)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", KINDS)
def test_packs_of_a_data_set_are_the_batches_that_it_gives(
    tmp_path: Path, kind: str, store: str, contents: Contents
) -> None:
    source, options = sources(tmp_path)[kind]
    loader = PackedImageLoader(source, PACKING, batch_size=2, shuffle=True, **options)
    want = all_of(contents, loader)
    job = pack(source, tmp_path / "out", options, store=store, shuffle=True)
    packed = PackedImageLoader(tmp_path / "out", batch_size=2)
    assert all_of(contents, packed) == want
    assert packed.stats()["images"] == loader.stats()["images"] == len(loader.index)
    assert packed.context.labels.num_classes == loader.context.labels.num_classes
    assert packed.classes == loader.classes
    assert not verify(tmp_path / "out").problems
    assert unpack(tmp_path / "out", tmp_path / "shards") == len(loader.index)
    shards = PackedImageLoader(str(tmp_path / "shards" / "*.tar"), PACKING, batch_size=2)
    assert sorted(keys_of(list(shards))) == sorted(loader.index.keys)
    files = written(tmp_path / "out")
    pack(source, tmp_path / "again", options, store=store, shuffle=True)
    assert written(tmp_path / "again") == files
    assert job.run()  # finished: nothing is written
    assert written(tmp_path / "out") == files


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", ["hugging face", "pairs", "records"])
def test_ranks_threads_and_resumes_on_packs_equal_those_on_the_data_set(
    tmp_path: Path, kind: str, store: str, contents: Contents
) -> None:
    source, options = sources(tmp_path)[kind]
    pack(source, tmp_path / "out", options, store=store, shuffle=True)
    for ranks in (1, 2, 3):
        for rank in range(ranks):
            given: dict[str, Any] = {
                "batch_size": 2,
                "block": 12,
                "rank": rank,
                "world_size": ranks,
                "num_threads": 1 + 3 * (rank % 2),
            }
            loader = PackedImageLoader(source, PACKING, shuffle=True, **given, **options)
            assert all_of(contents, PackedImageLoader(tmp_path / "out", **given)) == all_of(contents, loader)
    packed = PackedImageLoader(tmp_path / "out", batch_size=1)
    batches, states = [], []
    for batch in packed:
        batches.append(plain(contents(batch)))
        states.append(json.loads(json.dumps(packed.state_dict())))
    assert len(batches) >= 10
    for step in range(len(batches) - 1):
        again = PackedImageLoader(tmp_path / "out", batch_size=1)
        again.load_state_dict(states[step])
        assert all_of(contents, again) == batches[step + 1 :]
    left = []
    for rank in range(3):
        one = PackedImageLoader(tmp_path / "out", batch_size=2, rank=rank, world_size=3)
        one.load_state_dict(states[2])
        left += keys_of(list(one))
    used = [key for _, keys, *_ in batches[:3] for pack_keys in keys for key in pack_keys]
    assert sorted(used + left) == sorted(packed.index.keys)


CHANGING = {
    "sizes": PACKING.replace(patch_size=PatchSizes((4, 8))),
    "crop": PACKING.replace(resolution=RandomResizedCrop(max_tokens=20), token_drop=BetaDrop(0.3, 0.5)),
    "skip": PACKING.replace(resolution=SampleSide(low=16, high=120), seq_len=48, oversize="skip"),
}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("change", CHANGING)
def test_plans_that_change_from_epoch_to_epoch_are_stored(
    tmp_path: Path, change: str, store: str, contents: Contents
) -> None:
    source, options = sources(tmp_path)["pairs"]
    given: dict[str, Any] = {"shuffle": True, "block": 4}
    loader = PackedImageLoader(source, CHANGING[change], batch_size=4, **given, **options)
    want = [all_of(contents, loader) for _ in range(2)]
    pack(source, tmp_path / "out", options, CHANGING[change], store=store, epochs=2, **given)
    packed = PackedImageLoader(tmp_path / "out", batch_size=4, block=None if change == "sizes" else 4)
    assert [all_of(contents, packed) for _ in range(2)] == want
    assert not verify(tmp_path / "out").problems


@pytest.mark.parametrize("store", STORES)
def test_tasks_in_other_processes_write_the_same_bytes_and_killed_ones_are_made_up_for(
    tmp_path: Path, store: str
) -> None:
    for kind in ("pairs", "records", "hugging face"):
        source, options = sources(tmp_path)[kind]
        want = written(Path(pack(source, tmp_path / kind / "one", options, store=store).out))
        out = tmp_path / kind / "tasks"
        given = {"source": source, "out": str(out), "packing": PACKING, "part_packs": 3, "store": store} | options
        assert not Job(**given).run(1, 2)
        parts = sorted((out / "parts").iterdir())
        (out / "done" / f"{parts[0].stem}.json").unlink()
        parts[0].write_bytes(b"half a part")
        assert not Job(**given).run(1, 2)
        assert Job(**given).run(0, 2)
        assert written(out) == want
        if kind == "records":
            assert run_local(Job(**given | {"out": str(tmp_path / kind / "local")}), 2)
            assert written(tmp_path / kind / "local") == want


def test_workers_do_not_read_the_sizes_again(tmp_path: Path) -> None:
    items = Items(COUNT, lambda i: (PHOTOS.pixels(i), PHOTOS.labels[i]))
    job = Job(source=items, out=str(tmp_path / "out"), packing=PACKING)
    before = list(items.calls)
    sent = job.absolute()
    assert items.calls == before
    assert sent.run()
    assert sum(items.calls) - sum(before) <= COUNT + 3  # the image, once; the first label to see its type


class Damaged:
    """Pairs of which one raises `BadImage` and one a PIL error, only once their sizes are known."""

    def __init__(self) -> None:
        self.is_damaged = True

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> tuple[Any, int]:
        if i == 5:
            raise BadImage("it was never scanned")
        if i == 8:
            return Image.open(io.BytesIO(PHOTOS.data[8][:-40])), 1  # a PNG that ends early
        if i == 9:
            return PHOTOS.data[9][:200], 1  # a JPEG that ends early
        return PHOTOS.pixels(i), PHOTOS.labels[i]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("sizes", [False, True])
def test_bad_images_are_counted_and_quarantined_from_the_packs(tmp_path: Path, store: str, sizes: bool) -> None:
    given = np.array([PHOTOS.pixels(i).shape[1::-1] for i in range(COUNT)]) if sizes else None
    loader = PackedImageLoader(Damaged(), PACKING, batch_size=2, sizes=given)
    keys = keys_of(list(loader))
    assert loader.stats()["bad_images"] == 3
    pack(Damaged(), tmp_path / "out", {"sizes": given}, store=store)
    quarantine = tmp_path / "bad.jsonl"
    packed = PackedImageLoader(tmp_path / "out", batch_size=2, errors=ErrorPolicy(quarantine=quarantine))
    assert keys_of(list(packed)) == keys
    assert {json.loads(line)["key"] for line in quarantine.read_text().splitlines()} == {"5", "8", "9"}
    assert packed.stats()["images"] + packed.stats()["bad_images"] == COUNT
    manifest = read_manifest(open_folder(tmp_path / "out", None))
    reasons = [bad["reason"] for bad in manifest.bad]
    if sizes:
        assert "it was never scanned" in reasons
    assert not verify(tmp_path / "out").problems
    assert unpack(tmp_path / "out", tmp_path / "shards")


def test_too_many_bad_images_stop_the_job(tmp_path: Path) -> None:
    def item(i: int) -> Any:
        if i % 2:
            raise BadImage("lost")
        return PHOTOS.pixels(0), 1

    sizes = np.tile([PHOTOS.pixels(0).shape[1::-1]], (3000, 1))
    job = Job(source=Items(3000, item), sizes=sizes, out=str(tmp_path / "out"), packing=PACKING)
    with pytest.raises(BadDataError, match="1500 of the 3000 images of a part were bad"):
        job.run()


MODES = ("RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "YCbCr", "P+", "RGB+")


def drawn(mode: str, i: int) -> Image.Image:
    image = opened(i).convert("RGB").resize((40, 31))
    if mode == "P+":
        image = image.convert("P")
        image.info["transparency"] = 3
        return image
    if mode == "RGB+":
        image.info["transparency"] = image.getpixel((3, 3))
        return image
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray((np.arange(31 * 40).reshape(31, 40) % 256).astype(np.uint8)))
    return image.convert(mode)


@pytest.mark.parametrize("image_mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("native", [True, False])
def test_decoded_images_of_every_mode_lose_nothing(
    tmp_path: Path, image_mode: str, native: bool, contents: Contents
) -> None:
    items: list[tuple[Any, int]] = [(drawn(mode, i), i) for i, mode in enumerate(MODES)]
    for orientation in range(2, 9):
        image = drawn("RGB", orientation)
        exif = image.getexif()
        exif[0x0112] = orientation
        image.info["exif"] = exif.tobytes()
        items.append((image, 0))
    rgba = np.asarray(drawn("RGBA", 0))
    items += [(rgba, 0), (rgba[..., :3], 1), (rgba[..., :1], 2), (rgba[..., 0], 3)]
    packing: Any = PACKING.replace(image_mode=image_mode)
    epochs = None
    if not native:
        packing, epochs = packing.replace(resolution=RandomResizedCrop(max_tokens=12)), 2
    loader = PackedImageLoader(items, packing, batch_size=2)
    want = [all_of(contents, loader) for _ in range(2)]
    pack(items, tmp_path / "out", {}, packing, epochs=epochs)
    packed = PackedImageLoader(tmp_path / "out", batch_size=2)
    assert [all_of(contents, packed) for _ in range(2)] == want
    assert unpack(tmp_path / "out", tmp_path / "shards") == len(items)
    shards = PackedImageLoader(
        str(tmp_path / "shards" / "*.tar"), packing, batch_size=2, image="jpg;png;tif", label="label"
    )
    assert {image.key: image.pixels().tobytes() for batch in shards for image in batch.images()} == {
        image.key: image.pixels().tobytes() for batch in loader for image in batch.images()
    } or not native


def test_encoded_items_are_kept_byte_for_byte(tmp_path: Path) -> None:
    pack(PHOTOS.hugging_face(), tmp_path / "out", {})
    unpack(tmp_path / "out", tmp_path / "shards")
    found: dict[str, bytes] = {}
    for path in (tmp_path / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            found |= {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    want = {f"{i}.{'png' if i % 3 == 2 else 'jpg'}": data for i, data in enumerate(PHOTOS.data)}
    assert found == want


def raising(i: int) -> Any:
    if i == 7:
        raise KeyError("weather")
    return PHOTOS.pixels(i), 1


class Growing:
    """Items that change their size once they have been read."""

    def __init__(self) -> None:
        self.calls = 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> np.ndarray:
        self.calls += 1
        return np.zeros((20 + self.calls, 20, 3), np.uint8)


def mixed_types(i: int) -> Any:
    return {"image": PHOTOS.pixels(i), "note": "text" if i < 5 else 7}


MISTAKES: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    (lambda: Mixture({"a": (PHOTOS.hugging_face(), 1)}), {}, r"source is a Mixture of 'a', which .*ConcatDataset"),
    (
        lambda: Items(8, lambda i: {"image": PHOTOS.pixels(i), "when": {1, 2}}),
        {"extras": ["when"]},
        r"the member 'when' of the image with key '0' of data set Items cannot be packed: .* builtins.set",
    ),
    (
        lambda: Items(8, lambda i: {"image": PHOTOS.pixels(i), "m": {"bytes": b"x", "path": None}}),
        {"extras": ["m"]},
        r"'m' .* cannot be packed: it is or holds a builtins.bytes",
    ),
    (
        lambda: Items(8, mixed_types),
        {"extras": ["note"]},
        r"'note' of the image with key '[567]' .* it is a int, and the first rows hold text; give all rows the same",
    ),
    (lambda: Items(8, raising), {}, r"row 7 of Items raised KeyError"),
    (Growing, {}, r"the plan was made for .* the items must not change"),
    (lambda: Pairs(PHOTOS), {"label": "weight"}, r"asks for 'weight', which no row .* has"),
    (lambda: Pairs(PHOTOS), {"label": len}, r"must be the name of a member"),
    (lambda: Pairs(PHOTOS), {"path": "file"}, r"path= is for tables of paths"),
    (
        lambda: Pairs(PHOTOS),
        {"errors": ErrorPolicy(max_bytes=100)},
        r"bytes as it is packed; the limit is max_bytes 100",
    ),
    (list, {}, r"is empty|no shards|source"),
]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_mistakes_are_named_with_a_remedy(tmp_path: Path, number: int) -> None:
    make, options, message = MISTAKES[number]
    with pytest.raises((ValueError, RuntimeError), match=message):
        Job(source=make(), out=str(tmp_path / "out"), packing=PACKING, **options).run()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_packed_folder_is_no_source(tmp_path: Path) -> None:
    pack(PHOTOS.hugging_face(), tmp_path / "out", {})
    with pytest.raises(ValueError, match=r"source is the packed folder '.*out'; .* patchnpack unpack"):
        Job(source=str(tmp_path / "out"), out=str(tmp_path / "other"), packing=PACKING)


def test_other_data_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    pack(Pairs(PHOTOS), tmp_path / "out", {"fingerprint": "first"})
    others: list[tuple[Any, dict[str, Any], str]] = [
        (Pairs(PHOTOS), {"fingerprint": "second"}, "source.data is 'second' here and 'first' there"),
        (Pairs(Photos(seed=1)), {"fingerprint": "third"}, "source.digest"),
        (PHOTOS.hugging_face(), {}, "source.shards"),
    ]
    for source, options, message in others:
        with pytest.raises(ValueError, match=f"holds other packs: {message}"):
            Job(source=source, out=str(tmp_path / "out"), packing=PACKING, part_packs=3, **options)
    labels = Photos()
    pack(labels.hugging_face(), tmp_path / "labels", {"label": "label"})
    labels.labels[3] += 1 if labels.labels[3] < 2 else -1
    with pytest.raises(ValueError, match=r"holds other packs: source.outside"):
        Job(source=labels.hugging_face(), out=str(tmp_path / "labels"), packing=PACKING, part_packs=3, label="label")


def test_paths_are_sources(tmp_path: Path, contents: Contents) -> None:
    PHOTOS.folder(tmp_path / "photos")
    want = all_of(contents, PackedImageLoader(tmp_path / "photos", PACKING, batch_size=2, label="folder"))
    pack(str(tmp_path / "photos"), tmp_path / "a", {"label": "folder"})
    assert all_of(contents, PackedImageLoader(tmp_path / "a", batch_size=2)) == want
    lines = ["file,kind", *(f"{path},{path.parent.name}" for path in sorted((tmp_path / "photos").rglob("*.*g")))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    pack(tmp_path / "t.csv", tmp_path / "b", {"path": "file", "label": "kind"})
    assert PackedImageLoader(tmp_path / "b", batch_size=2).classes == {"cat": 0, "dog": 1, "owl": 2}


def test_members_that_are_left_out_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = Job(source=PHOTOS.hugging_face(), out=str(tmp_path / "out"), packing=PACKING, extras=["caption"])
    job.absolute().run()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text for text in warnings if "leaves out" in text] == [
        "the packed folder leaves out the members label of the data set Dataset; name them in label= or extras= to "
        "keep them"
    ]
