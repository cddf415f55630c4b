"""Source patterns: which shards each form of source names, and the errors for all others."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchnpack.loaders.shards.patterns import expand


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with train-000000.tar to train-000011.tar and other.tar in it."""
    for i in range(12):
        (tmp_path / f"train-{i:06d}.tar").write_bytes(b"x")
    (tmp_path / "other.tar").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*numbers: int) -> list[str]:
    return [f"train-{i:06d}.tar" for i in numbers]


def test_one_path_is_one_shard(here: Path) -> None:
    assert expand("other.tar") == ["other.tar"]
    assert expand(here / "other.tar") == [str(here / "other.tar")]


def test_brace_range_keeps_its_order_and_zeros(here: Path) -> None:
    assert expand("train-{000000..000003}.tar") == names(0, 1, 2, 3)
    assert expand("train-0000{09..11}.tar") == names(9, 10, 11)
    assert expand("train-{000002..000000}.tar") == names(2, 1, 0)
    assert expand("{other,train-000001}.tar") == ["other.tar", *names(1)]
    assert expand(here / "train-{000000..000001}.tar") == [str(here / name) for name in names(0, 1)]


def test_glob_is_sorted(here: Path) -> None:
    assert expand("train-*.tar") == names(*range(12))
    assert expand("train-00000[3-5].tar") == names(3, 4, 5)
    assert expand("{train-00001?,other}.tar") == [*names(10, 11), "other.tar"]


def test_list_mixes_paths_ranges_and_globs_in_order(here: Path) -> None:
    assert expand(["other.tar", "train-{000004..000005}.tar", Path("train-000001.tar"), "train-00001*.tar"]) == [
        "other.tar",
        *names(4, 5, 1, 10, 11),
    ]


@pytest.mark.parametrize("name", ["odd{name}.tar", "odd[1].tar", "odd*.tar", "odd{0..3}.tar"])
def test_existing_file_with_magic_characters_is_taken_literally(name: str, here: Path) -> None:
    (here / name).write_bytes(b"x")
    assert expand(name) == [name]


def test_range_works_below_a_folder_with_magic_characters(here: Path) -> None:
    (here / "run[1]").mkdir()
    for i in range(2):
        (here / "run[1]" / f"{i}.tar").write_bytes(b"x")
    assert expand("run[1]/{0..1}.tar") == ["run[1]/0.tar", "run[1]/1.tar"]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            "missing.tar",
            FileNotFoundError,
            r"shard 'missing.tar' does not exist \(the working directory is .*; correct the path",
        ),
        (
            "train-{000010..000013}.tar",
            FileNotFoundError,
            r"'train-000012.tar' does not exist \(2 of the 4 shards in 'train-{",
        ),
        (["other.tar", "gone.tar"], FileNotFoundError, "shard 'gone.tar' does not exist"),
        (
            "nothing-*.tar",
            FileNotFoundError,
            r"no file in .* matches 'nothing-\*.tar'; name shards that exist",
        ),
        ("train-{}.tar", ValueError, r"braces in 'train-{}.tar' name no shard; write a range as {000000..000009}"),
        ("train-{000000..}.tar", ValueError, "name no shard; write a range"),
        ("train-{000000..000003.tar", ValueError, "has an unbalanced brace; write a range"),
        ("train-000000}.tar", ValueError, "has an unbalanced brace; write a range"),
        ("", ValueError, "the source is an empty string; give at least one shard"),
        ([], ValueError, "the source is an empty list; give at least one shard"),
        (["other.tar", "other.tar"], ValueError, "'other.tar' is named more than once"),
        (["train-000001.tar", "train-*.tar"], ValueError, "'train-000001.tar' is named more than once"),
        (["other.tar", "./other.tar"], ValueError, "'./other.tar' is named more than once"),
        ("s3://bucket/train-{000000..000003.tar", ValueError, "has an unbalanced brace"),
        ("https://host/", ValueError, "'https://host/' names no file"),
    ],
)
def test_source_without_shards_is_refused_with_the_remedy(
    source: str | list[str], error: type[Exception], message: str, here: Path
) -> None:
    with pytest.raises(error, match=message):
        expand(source)


def test_folder_of_images_is_refused_with_the_command_to_run(here: Path) -> None:
    (here / "images").mkdir()
    for name in ("a.jpg", "b.PNG", "c.txt"):
        (here / "images" / name).write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"'images' is a folder with 2 image files .* of it: patchnpack shard images -o images-shards"
    ):
        expand("images")


@pytest.mark.parametrize("name", ["manifest.json", "recipe.json"])
def test_packed_folder_is_refused_with_the_calls_that_read_it(here: Path, name: str) -> None:
    (here / "packed").mkdir()
    (here / "packed" / name).write_bytes(b"{}")
    with pytest.raises(
        ValueError,
        match=r"'packed' is a packed folder, not a shard: .*'packed'\).* unpack packed -o SHARDS",
    ):
        expand("packed")


def test_folder_of_shards_is_refused_with_the_pattern_to_use(here: Path) -> None:
    (here / "shards").mkdir()
    (here / "shards" / "a.tar").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"folder of 1 shards; name the shards: 'shards/\*.tar'"):
        expand("shards")
    with pytest.raises(ValueError, match="folder of 1 shards"):
        expand("sh*")
