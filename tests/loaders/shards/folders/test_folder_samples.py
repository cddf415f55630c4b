"""Images of a folder that belong together are written as one sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchnpack import PackedImageLoader, Packing
from patchnpack.loaders import write_shards
from patchnpack.loaders.shards.tar import read_samples
from tests.images import draw_image, encode_image
from tests.loaders.shards.folders.test_writer import contents


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Documents of 2 to 12 pages as files `cats/d0_1.png` ..., one with texts beside its pages and one of its own."""
    for d, count in enumerate((2, 12, 3)):
        for page in range(1, count + 1):
            path = tmp_path / "pages" / ("cats", "dogs")[d % 2] / f"d{d}_{page}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_image(draw_image(20 + page, 24, seed=d), "PNG"))
    (tmp_path / "pages" / "cats" / "d0_2.txt").write_text("page 2")
    (tmp_path / "pages" / "cats" / "d0.json").write_text('{"title": "a document"}')
    (tmp_path / "pages" / "cats" / "notes.json").write_text("{}")
    return tmp_path / "pages"


BY_KEY = "key:(.+)_[0-9]+"


def test_images_of_a_sample_are_members_of_one_key_in_natural_order(pages: Path, tmp_path: Path) -> None:
    written = write_shards(pages, tmp_path / "out", sample=BY_KEY, images_per_shard=5)
    assert (written.images, written.validation, written.samples, len(written.shards)) == (17, 0, 3, 2)
    assert written.classes == ["cats", "dogs"]
    found = contents(written)
    assert found.keys() == {"cats/d0", "dogs/d1", "cats/d2"}
    assert list(found["dogs/d1"]) == [*(f"{page:02d}.png" for page in range(1, 13)), "cls"]
    for page in range(1, 13):
        assert found["dogs/d1"][f"{page:02d}.png"] == (pages / "dogs" / f"d1_{page}.png").read_bytes()
    assert found["cats/d0"]["2.txt"] == b"page 2"
    assert found["cats/d0"]["json"] == b'{"title": "a document"}'
    assert (written.members, written.left_out) == ({".txt": 1, ".json": 1}, {".json": 1})
    again = write_shards(pages, tmp_path / "out", sample=BY_KEY, images_per_shard=5)
    assert again.kept == 2


def test_a_loader_finds_the_samples_that_were_written(pages: Path, tmp_path: Path) -> None:
    written = write_shards(pages, tmp_path / "out", sample=BY_KEY)
    packing = Packing(seq_len=64)
    loader = PackedImageLoader(written.shards, packing, batch_size=2, label="cls", sample="members")
    widths: dict[tuple[str, int], list[int]] = {}
    for batch in loader:
        for b, keys in enumerate(batch.keys):
            for j, key in enumerate(keys):
                widths.setdefault((key, int(batch.labels[b, j])), []).append(int(batch.image_sizes[b, j, 0]))
    assert widths == {("cats/d0", 0): [21, 22], ("dogs/d1", 1): list(range(21, 33)), ("cats/d2", 0): [21, 22, 23]}


def test_samples_are_held_out_whole(pages: Path, tmp_path: Path) -> None:
    written = write_shards(pages, tmp_path / "out", sample=BY_KEY, validation=0.34, folders="none")
    assert written.images + written.validation == 17
    counts = {sample.key: len([m for m in sample.members if m.endswith("png")])
              for shard in written.shards for sample in read_samples(shard)}  # fmt: skip
    assert counts == {"cats/d0": 2, "dogs/d1": 12, "cats/d2": 3}


def test_folders_that_are_samples_are_no_classes(pages: Path, tmp_path: Path) -> None:
    (pages / "cats" / "notes.json").unlink()
    written = write_shards(pages, tmp_path / "out", sample="key:(.+)/[^/]+")
    assert written.classes == []
    assert contents(written).keys() == {"cats", "dogs"}
    with pytest.raises(ValueError, match=r"d0_1.png' belongs to the sample 'cats', whose name is in no sub-folder"):
        write_shards(pages, tmp_path / "other", sample="key:(.+)/[^/]+", folders="classes")


def test_a_sample_rule_that_names_no_sample_or_two_labels_is_refused(pages: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"for none of the 17 images: the first without one is .*cats/d0_1\.png'"):
        write_shards(pages, tmp_path / "out", sample="key:(.+)-[0-9]+")
    with pytest.raises(ValueError, match="only 3 of the 17 images"):
        write_shards(pages, tmp_path / "out", sample=lambda key: key if "d2" in key else None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="did you mean 'members'"):
        write_shards(pages, tmp_path / "out", sample="member")
    for page in (1, 2):
        (pages / "cats" / f"d0_{page}.cls").write_text(str(page))
    with pytest.raises(ValueError, match=r"d0_1.cls' and .*d0_2.cls' give the sample 'cats/d0' two labels"):
        write_shards(pages, tmp_path / "out", sample=BY_KEY)
    assert not (tmp_path / "out").exists()
