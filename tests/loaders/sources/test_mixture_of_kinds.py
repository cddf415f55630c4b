"""A mixture of shards, folders and data sets keeps the promises of each, and gives what each source gives alone."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from torch.utils.data import DataLoader

from patchnpack.loaders import ErrorPolicy, Mixture, PackedImageLoader, report_of
from patchnpack.packer import BetaDrop, PackedBatch, RandomResizedCrop
from tests.images import write_tar
from tests.loaders.datasets.collections_of_images import CLASSES, ImageFolder, Items, Pairs, Photos
from tests.loaders.loading import PACKING, noisy

datasets.disable_progress_bars()

Contents = Callable[[PackedBatch], tuple[object, ...]]
SIZES = {"tar": 23, "hub": 40, "pairs": 17}
LABEL = {"tar": "cls", "hub": "label", "pairs": None}
RANDOM = PACKING.replace(
    resolution=RandomResizedCrop(scale=(0.3, 1.0), max_tokens=30), token_drop=BetaDrop(0.3, 0.6), patch_size=8
)


def tar_of(photos: Photos, path: Path) -> str:
    members = []
    for i, (data, label) in enumerate(zip(photos.data, photos.labels, strict=True)):
        members += [(f"{i}.{'png' if i % 3 == 2 else 'jpg'}", data), (f"{i}.cls", str(label).encode())]
    return write_tar(path, members)


@pytest.fixture(scope="module")
def photos() -> dict[str, Photos]:
    return {name: Photos(count, seed=seed) for seed, (name, count) in enumerate(SIZES.items())}


@pytest.fixture(scope="module")
def sources(photos: dict[str, Photos], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "tar": tar_of(photos["tar"], tmp_path_factory.mktemp("shards") / "a.tar"),
        "hub": photos["hub"].hugging_face(),
        "pairs": Pairs(photos["pairs"]),
    }


def load(sources: dict[str, Any], packing: Any = PACKING, images: int | None = None, **options: Any) -> Any:
    """Load all sources, weighted by their sizes: every image comes once per epoch."""
    weights = options.pop("weights", SIZES)
    mixture = Mixture({name: (source, weights[name]) for name, source in sources.items()}, images)
    given: dict[str, Any] = {"batch_size": 2, "label": LABEL, "shuffle": True} | options
    return PackedImageLoader(mixture, packing, **given)


def images_of(loader: Any) -> list[tuple[str, str, Any, bytes]]:
    """Source, key, label and pixels of each image of an epoch, in order."""
    found = []
    names, shards = [*SIZES], loader.index
    for batch in loader:
        rows = batch.rows[batch.image_mask].tolist()
        for row, image in zip(rows, batch.images(), strict=True):
            name = names[int(shards.shard_of(row))] if len(shards.shards) == len(names) else ""
            found.append((name, image.key, image.label, image.pixels().tobytes()))
    return found


@pytest.mark.parametrize("order", [("tar", "hub", "pairs"), ("pairs", "tar", "hub")])
def test_each_source_gives_the_images_and_labels_that_it_gives_alone(
    sources: dict[str, Any], photos: dict[str, Photos], order: tuple[str, ...]
) -> None:
    loader = load({name: sources[name] for name in order})
    found: dict[str, list[Any]] = {name: [] for name in order}
    for batch in loader:
        for row, image in zip(batch.rows[batch.image_mask].tolist(), batch.images(), strict=True):
            name = order[int(loader.index.shard_of(row))]
            found[name].append((image.key, image.label, image.pixels().tobytes()))
    for name in order:
        alone = PackedImageLoader(sources[name], PACKING, batch_size=2, label=LABEL[name])
        expected = [(i.key, i.label, i.pixels().tobytes()) for batch in alone for i in batch.images()]
        assert sorted(found[name]) == sorted(expected)
        assert sorted(label for _, label, _ in expected) == sorted(photos[name].labels)
    assert loader.stats()["sources"] == {name: SIZES[name] for name in order}
    assert loader.stats()["images"] == 80
    with pytest.raises(ValueError, match="the number of classes is unknown"):  # of pairs, as alone
        _ = loader.num_classes


@pytest.mark.parametrize("num_streams", [1, 2])
def test_weights_are_exact_and_passes_continue_in_the_next_epoch(sources: dict[str, Any], num_streams: int) -> None:
    loader = load(sources, images=45, weights={"tar": 1, "hub": 3, "pairs": 0.5}, num_streams=num_streams)
    seen: Counter[tuple[str, str]] = Counter()
    for _ in range(4):
        images = images_of(loader)
        assert Counter(name for name, *_ in images) == {"tar": 10, "hub": 30, "pairs": 5}
        seen.update((name, key) for name, key, *_ in images)
    for name, given in {"tar": 40, "hub": 120, "pairs": 20}.items():
        times = [seen[name, str(i)] for i in range(SIZES[name])]
        assert sum(times) == given
        assert set(times) <= {given // SIZES[name], given // SIZES[name] + 1}


@pytest.mark.parametrize("packing", [PACKING, RANDOM])
def test_batches_are_the_same_for_any_number_of_threads_and_workers(
    sources: dict[str, Any], packing: Any, contents: Contents
) -> None:
    expected = [contents(batch) for batch in load(sources, packing, num_threads=1, transform=noisy)]
    loader = load(sources, packing, num_threads=4, prefetch=5, transform=noisy)
    sent = pickle.loads(pickle.dumps(loader))  # noqa: S301
    assert [contents(batch) for batch in loader] == expected
    assert [contents(batch) for batch in sent] == expected
    workers = DataLoader(load(sources, packing, transform=noisy).as_dataset(), batch_size=None, num_workers=2)
    assert [contents(batch) for batch in workers] == expected


def test_ranks_together_yield_the_packs_of_one(sources: dict[str, Any]) -> None:
    alone = [pack for batch in load(sources, block=12, batch_size=12) for pack in batch.keys]
    for ranks in (1, 2, 3):
        made = [load(sources, block=12, rank=rank, world_size=ranks) for rank in range(ranks)]
        epochs = [list(one) for one in made]
        assert len(set(map(len, epochs))) == 1
        packs = [pack for step in zip(*epochs, strict=True) for b in range(2) for pack in (one.keys[b] for one in step)]
        assert packs[: len(alone)] == alone[: len(packs)]
        assert not any(packs[len(alone) :])
        assert sum(one.stats()["images"] for one in made) == 80


def test_resumes_at_each_step_of_two_epochs(sources: dict[str, Any], contents: Contents) -> None:
    options: dict[str, Any] = {"packing": RANDOM, "images": 50, "batch_size": 1}
    loader, batches, states = load(sources, **options), [], []
    for _ in range(2):
        for batch in loader:
            batches.append(contents(batch))
            states.append(json.loads(json.dumps(loader.state_dict())))
    per_epoch = len(batches) // 2
    for step, state in enumerate(states[:-1]):
        again = load(sources, num_threads=3, **options)
        again.load_state_dict(state)
        end = per_epoch if step + 1 < per_epoch else len(batches)
        assert [contents(batch) for batch in again] == batches[step + 1 : end]


def test_state_holds_the_data_of_each_data_set(sources: dict[str, Any], tmp_path: Path) -> None:
    state = load(sources, fingerprint=lambda data: "first").state_dict()
    load(sources, fingerprint=lambda data: "first").load_state_dict(state)
    with pytest.raises(ValueError, match=r"data = .*'pairs': 'first'.*this loader has .*'pairs': 'second'"):
        load(sources, fingerprint=lambda data: "second").load_state_dict(state)
    other = Photos(SIZES["hub"], seed=1)
    other.data[3] = other.data[6]
    changed = load(sources | {"hub": other.hugging_face()}, fingerprint=lambda data: "first", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="other images"):
        changed.load_state_dict(state)


def test_where_sees_the_rows_of_all_sources(sources: dict[str, Any]) -> None:
    loader = load(sources, where=lambda index: index.width > 30)
    assert len(loader.index) == 80
    assert set(np.flatnonzero(loader.source.rows.mask)) == set(np.flatnonzero(loader.index.width > 30))
    list(loader)
    stats = loader.stats()
    assert stats["skipped"]["where"] == int((loader.index.width <= 30).sum())


def test_corrupt_images_of_data_sets_and_shards_are_quarantined(tmp_path: Path) -> None:
    photos = {name: Photos(count, seed=seed) for seed, (name, count) in enumerate(SIZES.items())}
    photos["hub"].data[5] = b"no image at all"
    photos["hub"].data[8] = photos["hub"].data[8][:-40]
    photos["tar"].data[9] = photos["tar"].data[9][:-40]
    sources = {
        "tar": tar_of(photos["tar"], tmp_path / "a.tar"),
        "hub": photos["hub"].hugging_face(),
        "pairs": Pairs(photos["pairs"]),
    }
    quarantine = tmp_path / "bad.jsonl"
    policy = ErrorPolicy(quarantine=quarantine, truncated="skip")
    loader = load(sources, weights={"tar": 23, "hub": 39, "pairs": 17}, errors=policy)
    images = images_of(loader)
    stats = loader.stats()
    # Header 5 is left out of the mixture before the epoch; two more do not decode.
    assert stats["images"] == len(images) == 77
    assert stats["images"] + stats["bad_images"] == 80
    lines = {(line["key"], line["shard"], line["row"]) for line in map(json.loads, quarantine.read_text().splitlines())}
    assert lines == {
        ("5", "data set Dataset 'hub'", 23 + 5),
        ("8", "data set Dataset 'hub'", 23 + 8),
        ("9", sources["tar"], 9),
    }


def test_report_and_extremes_of_a_mixture(sources: dict[str, Any]) -> None:
    loader = load(sources)
    report = report_of(loader)
    list(loader)
    assert (report.images, report.packs) == (loader.stats()["images"], loader.stats()["packs"])
    assert loader.label_range() is None  # pairs show their labels when they are read
    known = load({name: sources[name] for name in ("tar", "hub")}, label={"tar": "cls", "hub": "label"})
    low, high = known.label_range()
    assert (low.value, high.value, known.num_classes) == (0, 2, 3)
    assert set(loader.largest_grids()) == {PACKING.patch_size}


def test_extras_are_members_of_each_source(sources: dict[str, Any], photos: dict[str, Photos], tmp_path: Path) -> None:
    members = [(f"{i}.{e}", d) for i in range(3) for e, d in (("jpg", photos["tar"].data[0]), ("caption", b"bytes"))]
    given = {"tar": write_tar(tmp_path / "x.tar", members), "hub": sources["hub"]}
    options: dict[str, Any] = {"extras": ["caption"], "label": None, "weights": {"tar": 3, "hub": 40}}
    captions = [c for batch in load(given, **options) for pack in batch.extras["caption"] for c in pack]
    assert Counter(map(type, captions)) == {bytes: 3, str: 40}
    with pytest.raises(ValueError, match=r"extras asks for 'caption', which no sample has"):
        load(sources, extras=["caption"])
    with pytest.raises(ValueError, match=r"extras asks for 'caption', which no row of data set Pairs has"):
        load({"tar": given["tar"], "pairs": sources["pairs"]}, **options | {"weights": {"tar": 1, "pairs": 1}})


# Labels


def folder_of(photos: Photos, path: Path, names: tuple[str, ...] = CLASSES) -> str:
    for i, (data, label) in enumerate(zip(photos.data, photos.labels, strict=True)):
        file = path / names[label] / f"{i:03d}.{'png' if i % 3 == 2 else 'jpg'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return str(path)


def labels_of(loader: Any) -> Counter[Any]:
    return Counter(image.label for batch in loader for image in batch.images())


def test_names_of_folders_and_class_labels_are_numbered_together(photos: dict[str, Photos], tmp_path: Path) -> None:
    folder = folder_of(photos["tar"], tmp_path / "photos", ("ape", "dog", "cat"))
    given = {"tar": folder, "hub": photos["hub"].hugging_face()}
    loader = load(given, label={"tar": "folder", "hub": "label"}, cache_dir=tmp_path / "cache")
    assert loader.classes == {"ape": 0, "cat": 1, "dog": 2, "owl": 3}
    expected = Counter(loader.classes[("ape", "dog", "cat")[label]] for label in photos["tar"].labels)
    expected.update(loader.classes[CLASSES[label]] for label in photos["hub"].labels)
    assert labels_of(loader) == expected
    assert loader.num_classes == 4
    classes = ["owl", "dog", "cat", "ape"]
    loader = load(given, label={"tar": "folder", "hub": "label"}, cache_dir=tmp_path / "cache", classes=classes)
    expected = Counter(classes.index(("ape", "dog", "cat")[label]) for label in photos["tar"].labels)
    expected.update(classes.index(CLASSES[label]) for label in photos["hub"].labels)
    assert labels_of(loader) == expected


def test_sources_that_number_classes_differently_are_an_error(photos: dict[str, Photos], tmp_path: Path) -> None:
    hub = photos["hub"].hugging_face()
    turned = datasets.ClassLabel(names=["dog", "cat", "owl"])
    other = photos["tar"].hugging_face(label=(turned, photos["tar"].labels))
    with pytest.raises(ValueError, match=r"class 'dog' is 0 in source 'tar' and 1 in 'hub'; give classes="):
        load({"hub": hub, "tar": other}, label="label")
    loader = load({"hub": hub, "tar": other}, label="label", classes=CLASSES)
    expected = Counter(photos["hub"].labels) + Counter((1, 0, 2)[label] for label in photos["tar"].labels)
    assert labels_of(loader) == expected
    renamed = photos["tar"].hugging_face(label=(datasets.ClassLabel(names=["ape"]), [0] * SIZES["tar"]))
    with pytest.raises(ValueError, match=r"class 0 is 'ape' in source 'tar' and 'cat' in 'hub'; give classes="):
        load({"hub": hub, "tar": renamed}, label="label")
    folder = folder_of(photos["tar"], tmp_path / "photos", ("ape", "dog", "cat"))
    torchvision = photos["hub"].folder(tmp_path / "torchvision")
    assert isinstance(torchvision, ImageFolder)
    with pytest.raises(ValueError, match=r"class 'cat' is 0 in source 'hub' and 1 in 'the folders and tables'"):
        load({"tar": folder, "hub": torchvision}, label={"tar": "folder", "hub": None})


def test_shards_without_the_label_of_a_folder_have_none(
    sources: dict[str, Any], photos: dict[str, Photos], tmp_path: Path
) -> None:
    folder = folder_of(photos["pairs"], tmp_path / "photos")
    mixture = Mixture({"tar": (sources["tar"], SIZES["tar"]), "pairs": (folder, SIZES["pairs"])})
    loader = PackedImageLoader(mixture, PACKING, batch_size=2, label="folder", cache_dir=tmp_path / "cache")
    assert loader.classes == {"cat": 0, "dog": 1, "owl": 2}
    assert labels_of(loader) == Counter(photos["pairs"].labels) + Counter({-100: SIZES["tar"]})


def test_unlabelled_sources_have_the_absent_label_of_the_others(sources: dict[str, Any]) -> None:
    loader = load(sources, label=None)  # pairs bring theirs
    assert labels_of(loader)[-100] == SIZES["tar"] + SIZES["hub"]
    assert loader.stats()["without_label"] == SIZES["tar"] + SIZES["hub"]
    targets = Items(17, lambda i: (sources["pairs"][i][0], [i, 0.5]))
    loader = load(sources | {"pairs": targets}, label=None)
    labels = np.concatenate([batch.labels[batch.image_mask].numpy() for batch in loader])
    assert labels.shape == (80, 2)
    assert np.isnan(labels).all(1).sum() == 63
    with pytest.raises(ValueError, match=r"labels of source 'tar' have shape \(\), those of 'pairs' \(2,\)"):
        load(sources | {"pairs": targets})


def test_a_function_gets_bytes_of_shards_and_values_of_data_sets(
    sources: dict[str, Any], photos: dict[str, Photos]
) -> None:
    loader = load(sources, label=lambda members: int(members["cls"] if "cls" in members else members["label"]))
    assert labels_of(loader) == Counter(label for each in photos.values() for label in each.labels)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"label": {"tar": "cls", "hub": "label"}}, "label has no source 'pairs'; a dict gives each source"),
    ({"label": LABEL | {"web": "cls"}}, "label names 'web', which is no source"),
    ({"label": "cls"}, "label asks for 'cls', which no row of data set Dataset has"),
    ({"label": LABEL | {"tar": "text"}}, "label 'text' is absent from all 23 samples"),
    ({"sizes": [(1, 1)]}, "sizes= is for one data set, and the mixture has 2"),
    ({"fingerprint": "v1"}, "fingerprint is 'v1', and the mixture has 2 data sets; give a function"),
    ({"path": "file"}, "path is 'file', which is for tables of paths"),
    ({"classes": ["a"], "label": dict.fromkeys(SIZES)}, "label 2 is not among the 1 classes"),
    ({"index": "a.parquet"}, "index= is for one source"),
]


@pytest.mark.parametrize(("options", "says"), MISTAKES, ids=[f"{i}" for i in range(len(MISTAKES))])
def test_a_wrong_option_is_an_error_before_work_starts(
    sources: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        load(sources, **options)


def test_sources_of_an_index_share_one_label(sources: dict[str, Any]) -> None:
    given = {"tar": sources["tar"], "hub": sources["tar"], "pairs": sources["pairs"]}
    with pytest.raises(ValueError, match=r"label is 'cls' for source 'tar' and 'txt' for 'hub'; shards, folders and"):
        load(given, label={"tar": "cls", "hub": "txt", "pairs": None})


def test_data_sets_alone_make_a_mixture(sources: dict[str, Any], photos: dict[str, Photos]) -> None:
    given = {name: sources[name] for name in ("hub", "pairs")}
    loader = load(given, label="label", classes=CLASSES)
    assert labels_of(loader) == Counter(photos["hub"].labels) + Counter(photos["pairs"].labels)
    with pytest.raises(ValueError, match="root= is for tables of paths"):
        load(given, label="label", root="x")
    with pytest.raises(ValueError, match="classes= names the classes of labels, and label is None"):
        load({"hub": sources["hub"]}, label=None, classes=CLASSES)
    one = load({"tar": sources["tar"], "pairs": sources["pairs"]}, label=None, fingerprint="v1")
    assert one.state_dict()["fingerprint"]["data"] == "{'pairs': 'v1'}"


def test_a_data_set_of_splits_is_an_error_that_names_them(sources: dict[str, Any]) -> None:
    splits = datasets.DatasetDict({"train": sources["hub"], "test": sources["hub"]})
    with pytest.raises(ValueError, match="with the splits 'train', 'test'; give one of them"):
        load(sources | {"hub": splits})
