from __future__ import annotations

import os
from pathlib import Path

import pytest

from patchnpack import PackedImageLoader, Packing
from patchnpack.loaders import Written, scan, write_shards
from patchnpack.loaders.shards.folders import writer as writer_module
from patchnpack.loaders.shards.tar import read_samples
from tests.images import draw_image, encode_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 images of 3 classes in nested folders, beside files that are not images."""
    for i in range(12):
        path = tmp_path / "photos" / ("ant", "bee", "cat")[i % 3] / f"day {i // 6}" / f"IMG.{i:02d}.JPG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(draw_image(40 + i, 30, seed=i)))
    (tmp_path / "photos" / "ant" / "day 0" / "IMG.00.txt").write_text("an ant")
    for name in ("ant/.hidden.jpg", ".git/a.jpg", "ant/notes.md"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "photos"


def contents(written: Written) -> dict[str, dict[str, bytes]]:
    found = {}
    for shard in written.shards:
        data = Path(shard).read_bytes()
        for sample in read_samples(shard):
            assert sample.key not in found
            found[sample.key] = {name: data[at : at + size] for name, (at, size) in sample.members.items()}
    return found


def test_each_image_is_written_once_with_its_bytes_class_and_text(folder: Path, tmp_path: Path) -> None:
    written = write_shards(folder, tmp_path / "out", images_per_shard=5)
    assert [Path(shard).name for shard in written.shards] == [f"train-00000{i}.tar" for i in range(3)]
    assert (written.images, written.validation, written.kept) == (12, 0, 0)
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines() == written.classes == ["ant", "bee", "cat"]
    images = {path.relative_to(folder): path.read_bytes() for path in folder.glob("[abc]*/day*/*.JPG")}
    wanted = {
        path.with_name(path.stem.replace(".", "_")).as_posix(): {
            "jpg": data,
            "cls": str(written.classes.index(path.parts[0])).encode(),
        }
        for path, data in images.items()
    }
    wanted["ant/day 0/IMG_00"]["txt"] = b"an ant"
    assert contents(written) == wanted


def test_loader_reads_the_shards(folder: Path, tmp_path: Path) -> None:
    written = write_shards(folder, tmp_path / "out")
    loader = PackedImageLoader(written.shards, Packing(seq_len=64), batch_size=2, label="cls")
    labels = {image.key: image.label for batch in loader for image in batch.images()}
    assert len(labels) == 12
    assert all(written.classes[int(label)] == key.split("/")[0] for key, label in labels.items())


def test_seed_sets_the_order_and_none_keeps_the_paths_order(folder: Path, tmp_path: Path) -> None:
    orders = [
        [sample.key for sample in read_samples(write_shards(folder, tmp_path / str(i), seed=seed).shards[0])]
        for i, seed in enumerate((0, 0, 1, None))
    ]
    assert orders[0] == orders[1] != orders[2]
    assert orders[3] == sorted(orders[3]) == sorted(orders[0]) != orders[0]


def test_bytes_do_not_depend_on_threads_or_dates(folder: Path, tmp_path: Path) -> None:
    first = write_shards(folder, tmp_path / "a", images_per_shard=3, num_threads=1)
    for path in folder.rglob("*.JPG"):
        os.utime(path, (1, 1))
    second = write_shards(folder, tmp_path / "b", images_per_shard=3, num_threads=3)
    assert [Path(s).read_bytes() for s in first.shards] == [Path(s).read_bytes() for s in second.shards]


def test_validation_and_training_images_are_disjoint(folder: Path, tmp_path: Path) -> None:
    written = write_shards(folder, tmp_path / "out", validation=0.25)
    assert (written.images, written.validation) == (9, 3)
    parts = [{sample.key for sample in read_samples(shard)} for shard in written.shards]
    assert [Path(shard).name for shard in written.shards] == ["train-000000.tar", "validation-000000.tar"]
    assert [len(part) for part in parts] == [9, 3]
    assert len(set.union(*parts)) == 12


def test_interrupted_call_is_completed_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_shards(folder, tmp_path / "whole", images_per_shard=3)
    write = writer_module._write
    calls: list[Path] = []

    def fail_on_the_third(path: Path, samples: list[writer_module._Sample]) -> Path:
        calls.append(path)
        if len(calls) == 3:
            samples = [*samples[:1], writer_module._Sample("gone", {"jpg": tmp_path / "gone.jpg"}, 1)]
        return write(path, samples)

    monkeypatch.setattr(writer_module, "_write", fail_on_the_third)
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        write_shards(folder, tmp_path / "cut", images_per_shard=3, num_threads=1)
    assert not (tmp_path / "cut" / calls[2].name).exists()
    assert not list((tmp_path / "cut").glob(".*"))
    monkeypatch.undo()
    again = write_shards(folder, tmp_path / "cut", images_per_shard=3)
    assert again.kept == 2 or again.kept == 3  # the fourth may have been written before the error was seen
    assert [Path(s).read_bytes() for s in again.shards] == [Path(s).read_bytes() for s in whole.shards]


def test_images_of_one_stem_get_separate_keys(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "a.png", "a.txt"):
        (tmp_path / "in" / name).write_bytes(name.encode())
    found = contents(write_shards(tmp_path / "in", tmp_path / "out"))
    assert found == {"a": {"jpg": b"a.jpg", "txt": b"a.txt"}, "a_png": {"png": b"a.png", "txt": b"a.txt"}}


def test_folder_name_that_webdataset_skips_is_changed(tmp_path: Path) -> None:
    (tmp_path / "in" / "__x__").mkdir(parents=True)
    (tmp_path / "in" / "__x__" / "a.jpg").write_bytes(b"x")
    written = write_shards(tmp_path / "in", tmp_path / "out")
    assert list(contents(written)) == ["__x_/a"]
    assert written.classes == ["__x__"]


def test_label_files_take_precedence_over_folders(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("[abc]*/day*/*.JPG"):
        path.with_suffix(".cls").write_text("7")
    written = write_shards(folder, tmp_path / "out")
    assert written.classes == []
    assert set(scan(written.shards).cls) == {"7"}
    with pytest.raises(ValueError, match=r"has a \.cls file beside it \(12 in total\)"):
        write_shards(folder, tmp_path / "other", folders="classes")


def test_classes_file_sets_the_numbers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("zebra\ncat\nbee\nant\n")
    written = write_shards(folder, tmp_path / "out", classes=tmp_path / "classes.txt")
    assert {key.split("/")[0]: member["cls"] for key, member in contents(written).items()} == {
        "ant": b"3",
        "bee": b"2",
        "cat": b"1",
    }
    (tmp_path / "classes.txt").write_text("cat\nbee\n")
    with pytest.raises(ValueError, match=r"lacks the class 'ant', which is a folder here"):
        write_shards(folder, tmp_path / "out2", classes=tmp_path / "classes.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images_per_shard": 0}, "images_per_shard is 0"),
        ({"validation": 1.0}, "validation is 1.0; it is a share"),
        ({"folders": "labels"}, "folders is 'labels'; it must be one of 'auto', 'classes', 'none'"),
        ({"image": "tif"}, r"no image \(extensions tif\) was found below .*, but 12 of .jpg, 1 of .md, 1 of .txt"),
        ({"folders": "none", "classes": "c.txt"}, "classes is 'c.txt', but folders are not classes here"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_written(
    options: dict[str, object], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_shards(folder, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_image_outside_folders_turns_classes_off(folder: Path, tmp_path: Path) -> None:
    (folder / "top.jpg").write_bytes(b"x")
    assert write_shards(folder, tmp_path / "out").classes == []
    with pytest.raises(ValueError, match=r"top\.jpg' is in no sub-folder \(1 in total\); move them, or give folders"):
        write_shards(folder, tmp_path / "other", folders="classes")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist"):
        write_shards(tmp_path / "nowhere", tmp_path / "out")


def test_shards_of_other_images_are_never_overwritten(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = write_shards(folder, out, images_per_shard=6)
    bytes_before = [Path(shard).read_bytes() for shard in before.shards]
    for change in (
        {"images_per_shard": 12},
        {"images_per_shard": 6, "seed": 1},
        {"images_per_shard": 6, "members": ()},
    ):
        with pytest.raises(
            ValueError, match=r"train-00000\d\.tar' holds other images than this call would write; delete it"
        ):
            write_shards(folder, out, **change)
    (out / "classes.txt").write_text("ant\nbee\ndog\n")
    with pytest.raises(ValueError, match=r"classes\.txt' holds other classes"):
        write_shards(folder, out, images_per_shard=6)
    assert [Path(shard).read_bytes() for shard in before.shards] == bytes_before


def test_videos_are_written_where_all_their_frames_are_used(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"a video")
    with pytest.raises(ValueError, match=r"1 of \.mp4; give sample='members' to use the frames of videos, name"):
        write_shards(tmp_path / "clips", tmp_path / "out")
    written = write_shards(tmp_path / "clips", tmp_path / "out", sample="members")
    assert contents(written) == {"a": {"mp4": b"a video"}}
