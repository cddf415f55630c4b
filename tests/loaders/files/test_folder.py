"""Folders of images: what is found, what is left out, classes, the cache, and mistakes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchnpack import PackedImageLoader
from patchnpack.loaders import load_index, open_index, save_index, update_index
from patchnpack.loaders.files.table import FileTable
from patchnpack.loaders.shards.opener import ShardOpener
from tests.images import draw_image, encode_image, write_tar
from tests.loaders.files.making import PACKING, extras_of, images_of, loader_of, make_folder
from tests.loaders.loading import keys_of


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read from now on."""
    seen: list[str] = []
    read = FileTable.read

    def counted(self: FileTable, position: int, nbytes: int, opener: ShardOpener) -> bytes:
        seen.append(self.paths[position])
        return read(self, position, nbytes, opener)

    monkeypatch.setattr(FileTable, "read", counted)
    return seen


def test_hidden_files_are_left_out_and_links_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path / "in", 8)
    shutil.copytree(folder / "cat", tmp_path / "elsewhere")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "cat" / "loop").symlink_to(folder)
    (folder / "dog" / "one.jpg").symlink_to(tmp_path / "elsewhere" / "im02.jpg")
    for name in (".hidden.jpg", "notes.md", "cat/table.csv", ".git/a.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING, "patchnpack"):
        loader = loader_of(tmp_path, folder, label="folder")
    names = ["10/deep/im00", "10/im04", "9/deep/im05", "9/im01", "cat/im02", "cat/im06", "dog/im03", "dog/im07"]
    linked = ["dog/one", "linked/im02", "linked/im06"]
    assert sorted(keys_of(list(loader))) == sorted([*names, *linked])
    assert loader.stats()["without_image"] == 2
    assert loader.index.unused_members.tolist() == [4]
    assert len(caplog.records) == 1
    assert "2 are left out, such as 'notes.md', 'cat/table.csv'" in caplog.text
    assert set(loader.classes or ()) == {"10", "9", "cat", "dog", "linked"}


def test_images_at_the_top_have_no_class(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", 8)
    (folder / "top.png").write_bytes(encode_image(draw_image(20, 20), "PNG"))
    loader = loader_of(tmp_path, folder, label="folder")
    found = images_of(list(loader))
    assert found["top"][0] == -100
    assert loader.stats()["without_label"] == 1
    assert found["im00"][0] == 0


def test_classes_override_the_order_of_names(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", 8)
    names = ["dog", "cat", "9", "10"]
    assert images_of(list(loader_of(tmp_path, folder, label="folder", classes=names)))["im03"][0] == 0
    numbers = {"dog": 7, "cat": 7, "9": 1, "10": 0}
    loader = loader_of(tmp_path, folder, label="folder", classes=numbers)
    assert {images_of(list(loader))[name][0] for name in ("im02", "im03")} == {7}
    assert loader.num_classes == 8
    with pytest.raises(ValueError, match="label 10 is not among the 1 classes; name them all in classes="):
        loader_of(tmp_path, folder, label="folder", classes=["dog"])


def test_folders_named_by_numbers_are_their_numbers(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", 8)
    for name in ("cat", "dog"):
        shutil.rmtree(folder / name)
    loader = loader_of(tmp_path, folder, label="folder")
    assert loader.classes is None
    assert {label for label, _ in images_of(list(loader)).values()} == {9, 10}


def test_members_beside_images_are_labels_and_extras(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", 8)
    for i, path in enumerate(sorted(folder.rglob("*.jpg"))):
        path.with_suffix(".cls").write_text(str(i))
        path.with_suffix(".json").write_text(json.dumps({"n": i}))
    loader = loader_of(tmp_path, folder, label="cls", extras=["json", "folder"])
    for batch in loader:
        json_of, folder_of = extras_of(batch, "json"), extras_of(batch, "folder")
        for image in batch.images():
            assert image.label == json_of[image.key]["n"]
            assert folder_of[image.key] == image.key.partition("/")[0]
    assert loader.stats()["without_image"] == 0
    assert images_of(list(loader_of(tmp_path, folder, label="json:n")))


def test_only_new_and_changed_files_are_read_again(tmp_path: Path, reads: list[str]) -> None:
    folder = make_folder(tmp_path / "in", 12)
    first = loader_of(tmp_path, folder).index
    assert len(reads) == 12
    reads.clear()
    again = loader_of(tmp_path, folder).index
    assert reads == []
    assert (again.digest == first.digest).all()
    (folder / "cat" / "im02.jpg").write_bytes(encode_image(draw_image(33, 22)))
    (folder / "new.jpg").write_bytes(encode_image(draw_image(44, 22)))
    (folder / "dog" / "im03.jpg").unlink()
    os.utime(folder / "9" / "im01.jpg", ns=(1, 1))  # of the same size, so only its time shows that it may have changed
    index = loader_of(tmp_path, folder).index
    assert sorted(reads) == ["9/im01.jpg", "cat/im02.jpg", "new.jpg"]
    fresh = open_index(folder, opener=ShardOpener(tmp_path / "other"))
    for name in ("width", "height", "digest", "offset", "nbytes", "orientation", "format"):
        assert (getattr(index, name) == getattr(fresh, name)).all()
    assert list(index.keys) == list(fresh.keys)
    assert {33, 44} <= set(index.width.tolist())


def test_bad_headers_are_remembered(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", 8)
    (folder / "cat" / "im02.jpg").write_bytes(b"broken")
    first, again = (loader_of(tmp_path, folder).index.bad for _ in range(2))
    assert list(first.values()) == list(again.values())
    assert len(first) == 1


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_an_index_file_of_a_folder_moves_with_it(tmp_path: Path, reads: list[str], suffix: str) -> None:
    folder = make_folder(tmp_path / "a" / "in", 8)
    want = images_of(list(loader_of(tmp_path, folder, label="folder")))
    path, index, read = update_index(folder, folder / f"index.{suffix}")
    assert (read, len(index)) == (8, 8)
    assert update_index(folder, path)[2] == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # with the times of the files
    moved = tmp_path / "b" / "in" / f"index.{suffix}"
    assert load_index(moved).shards == (str(tmp_path / "b" / "in"),)
    assert images_of(list(loader_of(tmp_path, moved, label="folder"))) == want
    reads.clear()
    loader_of(tmp_path / "none", tmp_path / "b" / "in")  # finds the index in the folder
    assert reads == []
    assert images_of(list(loader_of(tmp_path, tmp_path / "b" / "in", index=moved, label="folder"))) == want
    shutil.rmtree(tmp_path / "b" / "in" / "cat")
    with pytest.raises(FileNotFoundError, match="is gone since it was indexed; restore it, or make a new loader"):
        list(loader_of(tmp_path, tmp_path / "b" / "in", index=moved))


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/in/c\xff"
    os.makedirs(folder)
    with open(folder + b"/a\xfe.jpg", "wb") as file:
        file.write(encode_image(draw_image(20, 20)))
    make_folder(tmp_path / "in", 4)
    for _ in range(2):
        loader = loader_of(tmp_path, tmp_path / "in", label="folder")
        assert len(keys_of(list(loader))) == 5
    save_index(loader.index, tmp_path / "index.parquet")
    assert len(keys_of(list(loader_of(tmp_path, tmp_path / "index.parquet")))) == 5


def test_several_folders_and_shards_are_one_source(tmp_path: Path) -> None:
    a, b = make_folder(tmp_path / "a", 8), make_folder(tmp_path / "b", 4)
    tar = write_tar(tmp_path / "x.tar", [("k.jpg", encode_image(draw_image(20, 20)))])
    loader = loader_of(tmp_path, [str(a), tar, b])
    assert len(keys_of(list(loader))) == 13
    assert loader.index.shards == (str(a), tar, str(b))
    with pytest.raises(ValueError, match="is named more than once"):
        loader_of(tmp_path, [a, a])


def test_an_index_of_many_files_takes_little_memory(tmp_path: Path) -> None:
    data = encode_image(draw_image(16, 16))
    for i in range(4000):
        path = tmp_path / "in" / f"class{i % 10}" / f"image{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    open_index(make_folder(tmp_path / "warm", 4), opener=ShardOpener(tmp_path / "cache"))
    tracemalloc.start()
    try:
        index = open_index(tmp_path / "in", opener=ShardOpener(tmp_path / "cache"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(index) == 4000
    assert peak < 4000 * 700 + (1 << 20), f"{peak / 4000:.0f} bytes per file"


def test_where_sees_sizes_and_keys(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", 12)
    loader = loader_of(
        tmp_path, folder, label="folder", where=lambda index: np.array([t == "cat" for t in index.cls[:]])
    )
    assert {key.partition("/")[0] for key in keys_of(list(loader))} == {"cat"}


@pytest.mark.parametrize(
    ("names", "options", "reason"),
    [
        ([], {}, "holds no file, nor do its sub-folders; name a folder of images"),
        (["a.tar", "b.tar"], {}, r"is a folder of 2 shards; name the shards: '.*/\*\.tar'"),
        (["x/a.tar", "y/b.tar"], {}, r"is a folder of 2 shards; name the shards: '.*/x/\*\.tar'"),
        (["x/a.parquet"], {}, r"is a folder of 1 shards; name the shards: '.*/x/\*\.parquet'"),
        (["a.md", "b.md"], {}, "holds no image .*, but 2 of .md; name another folder, or the extensions with image="),
        (["a.png"], {"image": "jpg"}, "holds no image .*, but 1 of .png; add image='png'"),
        (["a.jpg"], {"path": "file"}, "path is 'file', which is for tables of paths"),
        (["a.jpg"], {"root": "."}, "root is '.', which is for tables of paths"),
        (
            ["a.jpg"],
            {"label": "folder"},
            "needs a folder of images with one sub-folder per class; if you named .* its parent",
        ),
        (["cat/a.jpg"], {"label": "cls"}, "label 'cls' is absent from all 1 samples; .*: give label='folder'"),
        (
            ["train/a.jpg", "val/b.jpg"],
            {"label": "folder"},
            "look like splits.*; if they are classes, name them: classes=",
        ),
        (["images/a.jpg", "masks/a.png"], {"label": "folder"}, "look like images and their masks"),
    ],
)
def test_mistakes_with_folders_name_the_remedy(
    tmp_path: Path, names: list[str], options: dict[str, Any], reason: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(encode_image(draw_image(20, 20)))
    with pytest.raises(ValueError, match=reason):
        loader_of(tmp_path, folder, **options)


def test_splits_are_classes_where_they_are_named_so(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.jpg").write_bytes(encode_image(draw_image(20, 20)))
    assert loader_of(tmp_path, tmp_path / "in", label="folder", classes=["train", "val"]).num_classes == 2


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        loader_of(tmp_path, tmp_path / "none")


def test_worker_processes_that_are_spawned_read_the_files(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    folder = make_folder(tmp_path / "in", 8)
    loader = PackedImageLoader(folder, PACKING, batch_size=2, cache_dir=tmp_path / "cache", label="folder")
    spawned = DataLoader(loader.as_dataset(), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert len(keys_of(list(spawned))) == 8
