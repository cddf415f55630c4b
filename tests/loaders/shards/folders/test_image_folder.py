"""What is read from a folder of image files, and that nothing in it is lost in silence."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from patchnpack import PackedImageLoader, Packing
from patchnpack.cli.main import app
from patchnpack.loaders import write_shards
from patchnpack.loaders.imaging.formats import EXTENSIONS
from patchnpack.loaders.shards.folders.image_folder import read_image_folder
from patchnpack.loaders.shards.tar import read_samples
from tests.images import draw_image, encode_image

FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        extension = path.suffix[1:].lower()
        kind = FORMATS.get(extension, "PNG")  # a loader looks at the bytes, not at the name
        is_image = extension in EXTENSIONS
        path.write_bytes(encode_image(draw_image(20, 20), kind) if is_image else name.encode())
    return folder


def members(shards: list[str]) -> dict[str, set[str]]:
    return {sample.key: set(sample.members) for shard in shards for sample in read_samples(shard)}


def test_every_file_is_an_image_a_member_left_out_or_hidden(tmp_path: Path) -> None:
    names = [f"c/{i}.{extension}" for i, extension in enumerate([*EXTENSIONS, "JPG", "psd", "md", "txt", "cls"])]
    names += [
        "c/0.txt",
        "c/0.seg.png",
        "c/no",
        "c/.hidden.jpg",
        ".git/a.jpg",
        "__MACOSX/c/0.jpg",
        "top.JPEG",
        "x/y/z.Png",
    ]
    found = read_image_folder(fill(tmp_path / "in", *names))
    kept = sum(1 + len(image.members) for image in found.images)
    assert kept + found.left_out.total() + len(found.hidden) == len(names)
    assert len(found.images) == len(EXTENSIONS) + 3
    assert found.left_out == Counter({".psd": 1, ".md": 1, ".txt": 1, ".cls": 1, "no extension": 1})
    assert sorted(path.name for path in found.hidden) == [".git", ".hidden.jpg", "__MACOSX"]
    assert found.folders == {
        "c": Counter({".psd": 1, ".md": 1, ".txt": 1, ".cls": 1, "no extension": 1}),
        "x": Counter(),
    }


_NAMES = st.builds(
    "/".join,
    st.lists(st.text("ab.", min_size=1, max_size=3).filter(lambda name: set(name) != {"."}), max_size=2).flatmap(
        lambda folders: st.builds(
            lambda stem, extension: [*(f"{folder}-" for folder in folders), stem + extension],
            st.text("ab._", min_size=1, max_size=4),
            st.sampled_from([".jpg", ".png", ".JPG", ".txt", ".seg.png", ".md", ""]),
        )
    ),
)


@settings(deadline=None)
@given(st.sets(_NAMES, max_size=12))
def test_no_file_is_lost(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    folder = tmp_path_factory.mktemp("in")
    for name in names:
        if name.rpartition("/")[2] not in (".", ".."):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    files = {path for path in folder.rglob("*") if path.is_file()}
    try:
        found = read_image_folder(folder)
    except ValueError as error:
        if "rename one of them" in str(error) or "differ only in case" in str(error):
            return
        raise
    used = {folder / path for image in found.images for path in (image.path, *image.members.values())}
    hidden = {path for path in files if any(path.is_relative_to(above) for above in found.hidden)}
    assert used <= files
    assert not used & hidden
    assert len(used) + len(hidden) + found.left_out.total() == len(files)
    assert len({image.key for image in found.images}) == len(found.images)
    assert not any("." in image.key.rpartition("/")[2] for image in found.images)


def test_classes_of_every_format_that_is_read_are_kept_and_loaded(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", *(f"{extension}/a.{extension}" for extension in EXTENSIONS), "dog/a.jpg")
    written = write_shards(folder, tmp_path / "out")
    assert written.classes == sorted([*EXTENSIONS, "dog"])
    loader = PackedImageLoader(written.shards, Packing(seq_len=64), batch_size=1, label="cls")
    labels = {image.key.split("/")[0]: int(image.label) for batch in loader for image in batch.images()}
    assert labels == {name: number for number, name in enumerate(written.classes)}


def test_class_numbers_follow_the_sorted_names_as_torchvision_counts_them(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", *(f"{name}/a.jpg" for name in ("10", "9", "B", "a", "é")))
    assert write_shards(folder, tmp_path / "out").classes == ["10", "9", "B", "a", "é"]


def test_shards_may_lie_in_the_folder_of_the_images(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "cat/a.jpg", "dog/b.jpg")
    for out in (folder / "shards", folder / "cat" / ".." / "shards"):
        written = write_shards(folder, out)
        assert (written.images, written.classes, written.left_out) == (2, ["cat", "dog"], {})
    assert written.kept == 1


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b"])
def test_class_with_a_line_break_in_its_name_is_refused(name: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", f"{name}/a.jpg")
    with pytest.raises(ValueError, match=r"has a line break in its name, and classes\.txt lists lines; rename it"):
        write_shards(folder, tmp_path / "out")


def test_files_in_the_place_of_folders_and_empty_folders_are_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "cat/a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg' is a file; name the folder that holds the images"):
        write_shards(folder / "cat" / "a.jpg", tmp_path / "out")
    with pytest.raises(ValueError, match=r"out is '.*a\.jpg', a file; name a folder for the shards"):
        write_shards(folder, folder / "cat" / "a.jpg")
    (tmp_path / "empty" / "below").mkdir(parents=True)
    with pytest.raises(ValueError, match="empty' holds no file, nor do its sub-folders; name the folder of the images"):
        write_shards(tmp_path / "empty", tmp_path / "out")


# Links


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    fill(tmp_path / "far", "cats/a.jpg", "one.jpg", "hat.txt")
    folder = fill(tmp_path / "in", "dog/b.jpg")
    (folder / "cat").symlink_to(tmp_path / "far" / "cats")
    (folder / "dog" / "c.jpg").symlink_to(tmp_path / "far" / "one.jpg")
    (folder / "dog" / "c.txt").symlink_to(tmp_path / "far" / "hat.txt")
    os.link(tmp_path / "far" / "one.jpg", folder / "dog" / "d.jpg")
    written = write_shards(folder, tmp_path / "out")
    assert written.classes == ["cat", "dog"]
    found = members(written.shards)
    assert found == {
        "cat/a": {"jpg", "cls"},
        "dog/b": {"jpg", "cls"},
        "dog/c": {"jpg", "cls", "txt"},
        "dog/d": {"jpg", "cls"},
    }


def test_loops_of_links_end_and_are_counted(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "cat/a.jpg", "dog/b.jpg")
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "cat" / "self").symlink_to(folder / "cat")
    (folder / "dog" / "other").symlink_to(folder / "cat")  # from there, "up" leads back
    found = read_image_folder(folder)
    assert [image.key for image in found.images] == ["cat/a", "dog/b", "dog/other/a"]
    assert [path.relative_to(folder).as_posix() for path in found.loops] == [
        "cat/self",
        "cat/up",
        "dog/other/self",
        "dog/other/up",
    ]


@pytest.mark.parametrize("name", ["cat/gone.jpg", "cat/gone", "gone"])
def test_link_that_leads_nowhere_is_named(name: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "cat/a.jpg")
    (folder / name).symlink_to(tmp_path / "nowhere")
    message = (
        f"{re.escape(name)}' is a link to '.*nowhere', which does not exist; restore that file or folder, or delete"
    )
    with pytest.raises(FileNotFoundError, match=message):
        write_shards(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["b.jpg", "a.txt"])
def test_pipe_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "cat/a.jpg")
    os.mkfifo(folder / "cat" / name)
    with pytest.raises(ValueError, match=rf"{name}' is neither a file nor a folder, but a pipe, .*delete it"):
        write_shards(folder, tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "cat/a.jpg", "dog/b.jpg")
    (folder / "dog").chmod(0)
    try:
        with pytest.raises(PermissionError, match="dog"):
            write_shards(folder, tmp_path / "out")
    finally:
        (folder / "dog").chmod(0o755)


# Members


def test_compound_extensions_are_members_of_the_image_they_begin_with(tmp_path: Path) -> None:
    names = ["a.jpg", "a.seg.png", "a.depth.tif", "a.caption.txt", "a.notes.md", "b.c.jpg", "b.c.seg.png", "b.d.jpg"]
    written = write_shards(fill(tmp_path / "in", *names), tmp_path / "out")
    assert members(written.shards) == {
        "a": {"jpg", "seg.png", "depth.tif", "caption.txt"},
        "b_c": {"jpg", "seg.png"},
        "b_d": {"jpg"},
    }
    assert written.members == {".seg.png": 2, ".depth.tif": 1, ".caption.txt": 1}
    assert written.left_out == {".md": 1}


def test_members_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "a.jpg", "a.txt", "a.TXT")
    with pytest.raises(
        ValueError, match=r"a\.TXT' and '.*a\.txt' differ only in case and would both be the member \.txt"
    ):
        write_shards(folder, tmp_path / "out")


# Folders that are no classes


def test_class_that_loses_all_its_files_is_an_error(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "cat/a.jpg", "dog/b.psd", "dog/c.psd", "dog/d.md")
    message = (
        r"the folder 'dog' is a class without an image: it holds 2 of \.psd, 1 of \.md; add the extension .*image="
    )
    for folders in ("auto", "classes"):
        with pytest.raises(ValueError, match=message):
            write_shards(folder, tmp_path / "out", folders=folders)
    assert not (tmp_path / "out").exists()
    written = write_shards(folder, tmp_path / "out", folders="none")
    assert (written.images, written.left_out) == (1, {".psd": 2, ".md": 1})
    assert len(members(write_shards(folder, tmp_path / "all", image="jpg;psd").shards)) == 3
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    fill(tmp_path / "empty", "dog/a.jpg")
    with pytest.raises(ValueError, match="the folder 'cat' is a class without an image: it holds no file"):
        write_shards(tmp_path / "empty", tmp_path / "out2")


@pytest.mark.parametrize(
    "names",
    [
        ("images/a.jpg", "masks/a.png"),
        ("JPEGImages/a.jpg", "SegmentationClass/a.png"),
        ("images/a.jpg", "labels/a.txt"),
        ("train/images/a.jpg", "train/masks/a.png"),
        ("images/a.jpg", "masks/a.png", "top.jpg"),
    ],
)
def test_images_and_masks_are_no_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", *names)
    with pytest.raises(
        ValueError, match=r"look like images and their masks .*, not like classes: move each mask beside"
    ):
        write_shards(folder, tmp_path / "out")
    images = sum(not name.endswith("txt") for name in names)
    assert write_shards(folder, tmp_path / "none", folders="none").images == images


def test_masks_moved_beside_their_images_are_members(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "images/a.jpg", "masks/a.png")
    (folder / "masks" / "a.png").rename(folder / "images" / "a.seg.png")
    assert members(write_shards(folder / "images", tmp_path / "out").shards) == {"a": {"jpg", "seg.png"}}


def test_splits_are_no_classes(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "train/cat/a.jpg", "val/cat/b.jpg")
    with pytest.raises(ValueError, match="the folders 'train', 'val' look like splits, not like classes: write each"):
        write_shards(folder, tmp_path / "out")
    assert write_shards(folder / "train", tmp_path / "train").classes == ["cat"]
    assert write_shards(folder, tmp_path / "both", folders="classes").classes == ["train", "val"]


def test_command_lists_members_and_what_is_left_out(tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "in", "cat/a.jpg", "cat/a.seg.png", "dog/b.bmp", "dog/c.psd", "dog/.d", "dog/e.md", "dog/f.md"
    )
    (folder / "dog" / "up").symlink_to(folder)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["shard", str(folder), "-o", str(out)])
    assert done.stdout.splitlines() == [
        f"{out}: 2 images in 1 shard",
        f"{out}/classes.txt: 2 classes: cat, dog",
        f"{out}: members of the images: 1 of .seg.png",
        f"{out}: left out: 2 of .md, 1 of .psd, 1 hidden, 1 links to a folder that they lie in",
    ]
