"""Folders and tables of paths keep the promises of a loader, and give what shards of the same images give."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from patchnpack import ErrorPolicy, Mixture, PackedImageLoader
from patchnpack.loaders import Index, open_index
from patchnpack.loaders.shards.opener import ShardOpener
from tests.images import read_tar
from tests.loaders.files.making import CLASSES, KINDS, PACKING, images_of, loader_of, make_sources, sequence_of, stem_of
from tests.loaders.loading import keys_of, noisy

CLOTHING = Path(__file__).resolve().parents[4] / "shared" / "data" / "clothing"
FILES = ("folder", "csv")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def sources(home: Path) -> dict[str, dict[str, Any]]:
    return make_sources(home)


def test_folder_tables_and_shards_give_the_same_images_and_labels(home: Path, sources: dict[str, Any]) -> None:
    found = {kind: images_of(list(loader_of(home, **sources[kind]))) for kind in KINDS}
    assert len(found["shards"]) == 40
    assert all(found[kind] == found["shards"] for kind in KINDS)
    for kind in ("folder", "csv"):
        loader = loader_of(home, **sources[kind])
        assert loader.classes == {name: i for i, name in enumerate(sorted(CLASSES))}
        assert loader.num_classes == 4


def test_keys_of_a_folder_are_those_of_its_shards(home: Path, sources: dict[str, Any]) -> None:
    assert sorted(loader_of(home, **sources["folder"]).index.keys) == sorted(
        loader_of(home, **sources["shards"]).index.keys
    )


@pytest.mark.skipif(not CLOTHING.exists(), reason="shared/data/clothing is not beside this checkout")
def test_photographs_as_files_and_as_shards_are_the_same(tmp_path: Path) -> None:
    names = (CLOTHING / "classes.txt").read_text().split()
    shard = CLOTHING / "validation-000000.tar"
    members: dict[str, dict[str, bytes]] = {}
    for name, data in read_tar(shard)[:240]:
        key, _, extension = name.partition(".")
        members.setdefault(key, {})[extension] = data
    rows = ["file,name"]
    for number, sample in enumerate(members.values()):
        path = tmp_path / "images" / names[int(sample["cls"])] / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample["jpg"])
        rows.append(f"{path.relative_to(tmp_path)},{names[int(sample['cls'])]}")
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    first = set(range(len(members)))
    packing = loader_of(tmp_path, tmp_path / "images").packing.replace(seq_len=1024, patch_size=16)

    def seen(source: Any, **options: Any) -> list[tuple[Any, bytes]]:
        found = images_of(list(loader_of(tmp_path, source, packing=packing, **options)))
        return sorted(found.values(), key=lambda pair: pair[1])

    shards = seen(
        str(shard), label="cls", where=lambda index: np.isin(np.arange(len(index)), list(first)), cache_dir=tmp_path
    )
    assert len(shards) == len(members)
    assert seen(str(tmp_path / "images"), label="folder", classes=names) == shards
    assert seen(str(tmp_path / "photos.csv"), label="name", classes=names) == shards


@pytest.mark.parametrize("kind", FILES)
def test_the_sequence_does_not_depend_on_threads_or_workers(home: Path, sources: dict[str, Any], kind: str) -> None:
    one = sequence_of(list(loader_of(home, **sources[kind], transform=noisy)))
    assert sequence_of(list(loader_of(home, **sources[kind], transform=noisy, num_threads=4, prefetch=5))) == one
    dataset = loader_of(home, **sources[kind], transform=noisy).as_dataset()
    assert sequence_of(list(DataLoader(dataset, batch_size=None, num_workers=2))) == one


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_out_each_image_exactly_once(home: Path, sources: dict[str, Any], kind: str, ranks: int) -> None:
    keys, lengths = [], set()
    for rank in range(ranks):
        batches = list(loader_of(home, **sources[kind], rank=rank, world_size=ranks))
        keys += keys_of(batches)
        lengths.add(len(batches))
    assert len(lengths) == 1
    assert len(keys) == len(set(keys)) == 40


@pytest.mark.parametrize("kind", FILES)
def test_a_state_of_any_step_resumes_in_a_new_loader(home: Path, sources: dict[str, Any], kind: str) -> None:
    def make(**options: Any) -> PackedImageLoader:
        return loader_of(
            home, **sources[kind], batch_size=1, packing=PACKING.replace(seq_len=24), transform=noisy, **options
        )

    whole, states = [], []
    loader = make()
    for batch in loader:
        whole.append(batch)
        states.append(loader.state_dict())
    assert len(whole) > 11
    for step in range(10):
        resumed = make()
        resumed.load_state_dict(states[step])
        assert sequence_of(list(resumed)) == sequence_of(whole[step + 1 :])
    for ranks in (2, 3):  # elastic
        rest = []
        for rank in range(ranks):
            part = make(rank=rank, world_size=ranks)
            part.load_state_dict(states[4])
            rest += keys_of(list(part))
        assert sorted(rest) == sorted(keys_of(whole[5:]))


@pytest.mark.parametrize("kind", FILES)
def test_where_and_quarantine_conserve_the_images(tmp_path: Path, kind: str) -> None:
    source = make_sources(tmp_path)[kind]
    broken, cut = tmp_path / "images" / "cat" / "im02.jpg", tmp_path / "images" / "dog" / "im03.jpg"
    broken.write_bytes(b"not an image")
    cut.write_bytes(cut.read_bytes()[:-120])
    quarantine = tmp_path / "bad.jsonl"
    policy = ErrorPolicy(max_rate=1.0, quarantine=quarantine)
    loader = loader_of(tmp_path, **source, errors=policy, where=lambda index: np.arange(len(index)) % 7 > 0)
    keys, stats = keys_of(list(loader)), loader.stats()
    assert len(keys) + stats["bad_images"] + stats["skipped"]["where"] == 40
    assert {stem_of(bad["key"]) for bad in stats["bad"]} == {"im02", "im03"}
    assert {bad["shard"] for bad in stats["bad"]} == {str(broken), str(cut)}
    assert str(broken) in quarantine.read_text()


def _shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _other(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Path.unlink, "is gone since it was indexed"),
        (_shorter, r"has \d+ bytes but had \d+ when it was indexed"),
        (_longer, r"has \d+ bytes but had \d+ when it was indexed"),
        (_other, "was modified after it was indexed"),
    ],
)
def test_a_file_that_changes_during_training_is_an_error_that_names_it(
    tmp_path: Path, kind: str, change: Callable[[Path], None], reason: str
) -> None:
    source = make_sources(tmp_path)[kind]
    loader = loader_of(tmp_path, **source, shuffle=False, batch_size=1, packing=PACKING.replace(seq_len=16), prefetch=1)
    last = stem_of(keys_of(list(loader))[-1])
    file = next((tmp_path / "images").rglob(f"{last}.jpg"))
    batches = iter(loader)
    next(batches)
    change(file)
    with pytest.raises(OSError, match=f"{re.escape(repr(str(file)))} {reason}.*; .*make a new loader"):
        list(batches)
    if change is not Path.unlink:  # the remedy works
        again = loader_of(tmp_path, **source)
        assert len(keys_of(list(again))) + again.stats()["bad_images"] == 40


def test_a_touched_file_is_not_changed_and_rotten_bytes_are_quarantined(tmp_path: Path) -> None:
    source = make_sources(tmp_path)["folder"]
    loader = loader_of(tmp_path, **source)
    first, second = sorted((tmp_path / "images").rglob("*.jpg"))[:2]
    os.utime(first, ns=(1, 1))
    about = second.stat()
    _other(second)
    os.utime(second, ns=(about.st_atime_ns, about.st_mtime_ns))
    keys = keys_of(list(loader))
    assert len(keys) == 39
    assert loader.stats()["bad"][0]["shard"] == str(second)
    assert "digest differs" in loader.stats()["bad"][0]["reason"]


def test_a_member_file_that_changes_is_an_error(tmp_path: Path) -> None:
    source = make_sources(tmp_path)["folder"]
    for path in (tmp_path / "images").rglob("*.jpg"):
        path.with_suffix(".txt").write_text("some text")
    loader = loader_of(tmp_path, source["source"], extras=["txt"])
    changed = min((tmp_path / "images").rglob("*.txt"))
    changed.write_text("same size")
    with pytest.raises(OSError, match=f"{changed.name}' was modified after it was indexed"):
        list(loader)


def test_a_mixture_of_folder_table_and_shards_has_all_images(home: Path, sources: dict[str, Any]) -> None:
    mixture = Mixture(
        {
            "files": (sources["folder"]["source"], 1),
            "rows": (sources["csv"]["source"], 1),
            "shards": (sources["shards"]["source"], 1),
        }
    )

    def make(**options: Any) -> PackedImageLoader:
        return loader_of(home, mixture, path="file", transform=noisy, **options)

    loader, whole, states = make(), [], []
    for batch in loader:
        whole.append(batch)
        states.append(loader.state_dict())
    keys = keys_of(whole)
    assert len(keys) == 120
    assert loader.stats()["sources"] == {"files": 40, "rows": 40, "shards": 40}
    resumed = make(num_threads=4)
    resumed.load_state_dict(states[3])
    assert sequence_of(list(resumed)) == sequence_of(whole[4:])


def test_mixed_folders_share_their_classes(home: Path, sources: dict[str, Any]) -> None:
    folder = sources["folder"]["source"]
    mixture = Mixture({"a": (folder, 1), "b": (open_index(folder, opener=ShardOpener(home / "cache")), 1)})
    loader = loader_of(home, mixture, label="folder")
    assert loader.classes == {name: i for i, name in enumerate(sorted(CLASSES))}
    assert set(loader.stats()["sources"]) == set()


def test_a_state_of_other_files_is_refused(tmp_path: Path) -> None:
    source = make_sources(tmp_path)["folder"]
    loader = loader_of(tmp_path, **source)
    next(iter(loader))
    state = loader.state_dict()
    max((tmp_path / "images").rglob("*.jpg")).unlink()
    with pytest.raises(ValueError, match="40 images in its index, this loader has 39"):
        loader_of(tmp_path, **source).load_state_dict(state)


def test_an_index_pickles_with_its_files(home: Path, sources: dict[str, Any]) -> None:
    import pickle

    index = loader_of(home, **sources["csv"]).index
    copy: Index = pickle.loads(pickle.dumps(index))  # noqa: S301 - made here
    assert images_of(list(loader_of(home, copy, label="species"))) == images_of(list(loader_of(home, **sources["csv"])))
