from __future__ import annotations

from pathlib import Path

import pytest

from patchnpack.loaders import Written, write_shards
from patchnpack.loaders.shards.tar import read_samples
from tests.patchnpack.cli.runs import ran


def fill(folder: Path, *names: str) -> Path:
    """Files that hold their own names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def contents(written: Written) -> dict[str, dict[str, bytes]]:
    found = {}
    for shard in written.shards:
        data = Path(shard).read_bytes()
        for sample in read_samples(shard):
            found[sample.key] = {name: data[at : at + size] for name, (at, size) in sample.members.items()}
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return fill(tmp_path / "images", "a.jpg", "cats/b.one.JPG", "cats/c.png", "c.txt")


def test_files_of_a_parallel_folder_become_members(images: Path, tmp_path: Path) -> None:
    masks = fill(tmp_path / "masks", "a.png", "cats/b.one.PNG", "cats/c.png", "d.png", "notes.md", ".hidden")
    written = write_shards(images, tmp_path / "out", member_folders={".seg.PNG": masks})
    assert contents(written) == {
        "a": {"jpg": b"a.jpg", "seg.png": b"a.png"},
        "cats/b_one": {"jpg": b"cats/b.one.JPG", "seg.png": b"cats/b.one.PNG"},
        "cats/c": {"png": b"cats/c.png", "seg.png": b"cats/c.png"},
    }
    assert (written.members, written.lacking) == ({".seg.png": 3}, {})
    assert (written.left_out, written.hidden) == ({".png": 1, ".md": 1, ".txt": 1}, 1)
    again = write_shards(images, tmp_path / "out", member_folders={"seg.png": masks})
    assert again.kept == 1


def test_images_without_a_file_there_are_counted(images: Path, tmp_path: Path) -> None:
    masks = fill(tmp_path / "masks", "cats/c.png")
    written = write_shards(images, tmp_path / "out", member_folders={"seg.png": masks})
    assert (written.members, written.lacking) == ({".seg.png": 1}, {".seg.png": 2})
    printed = ran("shard", images, "-o", tmp_path / "cli", "--member", f"seg.png={masks}")
    assert "2 images without a .seg.png member" in printed


def test_star_is_the_name_of_the_image(images: Path, tmp_path: Path) -> None:
    masks = fill(tmp_path / "masks", "a_mask.gif", "cats/b.one_mask.gif", "cats/c_mask.gif", "a.gif")
    written = write_shards(images, tmp_path / "out", member_folders={"seg.gif": masks / "*_mask.gif"})
    assert contents(written)["cats/b_one"]["seg.gif"] == b"cats/b.one_mask.gif"
    assert (written.lacking, written.left_out) == ({}, {".gif": 1, ".txt": 1})


def test_folder_of_masks_below_the_folder_holds_no_images(tmp_path: Path) -> None:
    images = fill(tmp_path / "images", "cats/a.jpg", "dogs/b.jpg", "masks/cats/a.png", "masks/dogs/b.png")
    written = write_shards(images, tmp_path / "out", member_folders={"seg.png": images / "masks"})
    assert (written.images, written.classes, written.members) == (2, ["cats", "dogs"], {".seg.png": 2})


def test_images_of_a_sample_keep_their_own_masks(tmp_path: Path) -> None:
    images = fill(tmp_path / "images", "d_1.png", "d_2.png")
    masks = fill(tmp_path / "masks", "d_1.png", "d_2.png")
    written = write_shards(
        images, tmp_path / "out", sample="key:(.+)_[0-9]+", member_folders={"seg.png": masks}, folders="none"
    )
    assert contents(written) == {
        "d": {"1.png": b"d_1.png", "1.seg.png": b"d_1.png", "2.png": b"d_2.png", "2.seg.png": b"d_2.png"}
    }


def test_whole_names_of_members_are_taken(tmp_path: Path) -> None:
    images = fill(tmp_path / "images", "a.jpg", "a.boxes.npy", "a.other.npy")
    printed = ran("shard", images, "-o", tmp_path / "out", "--member", "boxes.npy")
    assert "members of the images: 1 of .boxes.npy" in printed
    assert "left out: 1 of .npy" in printed


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"seg.png": "nowhere"}, "nowhere' does not exist; name the folder that holds the images"),
        ({"seg.png": "empty"}, r"no image has a \.seg\.png in .*empty', which holds no file: that of .*a\.jpg' would"),
        (
            {"seg.png": "npy"},
            r"no image has a \.seg\.png in .*npy', which holds 1 of \.npy: that of .*would be '.*a\.png",
        ),
        ({"seg.png": "*/masks"}, r"may have one \*, in its last part"),
        ({"seg.png": "**_mask.png"}, r"may have one \*, in its last part"),
        ({"a/b": "npy"}, r"a member is called 'a/b'; give what follows the first dot of its name, such as seg\.png"),
        ({"txt": "npy"}, r"the member \.txt is given twice"),
        ({"beside.png": "beside"}, r"a\.jpg' has the member \.beside\.png beside it, .*, and in a folder of its own"),
    ],
)
def test_wrong_folders_are_refused_before_anything_is_written(
    folders: dict[str, str], message: str, images: Path, tmp_path: Path
) -> None:
    fill(tmp_path, "npy/a.npy", "beside/a.png", "images/a.beside.png", "empty/.keep")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write_shards(
            images, tmp_path / "out", member_folders={name: str(tmp_path / each) for name, each in folders.items()}
        )
    assert not (tmp_path / "out").exists()


def test_member_that_no_image_has_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no image has the member \.sge\.png: for the first it would be .*a\.sge\.png"
    ):
        write_shards(images, tmp_path / "out", members=("txt", "sge.png"))
    assert write_shards(images, tmp_path / "out", members=("txt", "json")).members == {}
    with pytest.raises(ValueError, match=r"members is 'txt'; give a list of names"):
        write_shards(images, tmp_path / "other", members="txt")


@pytest.mark.parametrize("texts", [["=masks"], ["seg.png="], ["seg.png=a", "seg.png=b"], ["seg.png", "seg.png=b"]])
def test_flag_member_is_checked(texts: list[str], images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--member (is '.*'; give NAME or|names 'seg.png' twice)"):
        ran("shard", images, "-o", tmp_path / "out", *(f"--member={text}" for text in texts))
