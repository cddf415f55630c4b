from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.reader import ShardReader, expand


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


def test_list_mixes_paths_ranges_and_globs_in_its_order(here: Path) -> None:
    assert expand(["other.tar", "train-{000004..000005}.tar", Path("train-000001.tar"), "train-00001*.tar"]) == [
        "other.tar",
        *names(4, 5, 1, 10, 11),
    ]


@pytest.mark.parametrize("name", ["odd{name}.tar", "odd[1].tar", "odd*.tar", "odd{0..3}.tar"])
def test_shard_that_exists_under_an_odd_name_is_taken_as_it_is(name: str, here: Path) -> None:
    (here / name).write_bytes(b"x")
    assert expand(name) == [name]


def test_shard_in_a_folder_of_an_odd_name_is_found_by_range(here: Path) -> None:
    (here / "run[1]").mkdir()
    for i in range(2):
        (here / "run[1]" / f"{i}.tar").write_bytes(b"x")
    assert expand("run[1]/{0..1}.tar") == ["run[1]/0.tar", "run[1]/1.tar"]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("missing.tar", FileNotFoundError, r"shard 'missing.tar' does not exist \(looked from .*; correct the path"),
        (
            "train-{000010..000013}.tar",
            FileNotFoundError,
            r"'train-000012.tar' does not exist \(2 of the 4 that 'train-{",
        ),
        (["other.tar", "gone.tar"], FileNotFoundError, "shard 'gone.tar' does not exist"),
        (
            "nothing-*.tar",
            FileNotFoundError,
            r"no file matches 'nothing-\*.tar'; looked from .*, name shards that exist",
        ),
        ("train-{}.tar", ValueError, r"braces in 'train-{}.tar' name no shard; write a range as {000000..000009}"),
        ("train-{000000..}.tar", ValueError, "name no shard; write a range"),
        ("train-{000000..000003.tar", ValueError, "brace without its partner; write a range"),
        ("train-000000}.tar", ValueError, "brace without its partner; write a range"),
        ("", ValueError, "the source is an empty text; give at least one shard"),
        ([], ValueError, "the source is an empty list; give at least one shard"),
        (["other.tar", "other.tar"], ValueError, "'other.tar' is named more than once"),
        (["train-000001.tar", "train-*.tar"], ValueError, "'train-000001.tar' is named more than once"),
        (["other.tar", "./other.tar"], ValueError, "'./other.tar' is named more than once"),
        ("s3://bucket/train-{000000..000003.tar", ValueError, "has a brace without its partner"),
        ("https://host/", ValueError, "'https://host/' names no file"),
    ],
)
def test_source_that_names_no_shards_is_refused_with_the_value_and_the_remedy(
    source: str | list[str], error: type[Exception], message: str, here: Path
) -> None:
    with pytest.raises(error, match=message):
        expand(source)


def test_folder_of_images_is_refused_with_what_to_do(here: Path) -> None:
    (here / "images").mkdir()
    for name in ("a.jpg", "b.PNG", "c.txt"):
        (here / "images" / name).write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"'images' is a folder with 2 image files .* first: patchnpack shard images -o images-shards"
    ):
        expand("images")


@pytest.mark.parametrize("name", ["manifest.json", "recipe.json"])
def test_folder_of_packs_is_refused_with_what_reads_it(here: Path, name: str) -> None:
    (here / "packed").mkdir()
    (here / "packed" / name).write_bytes(b"{}")
    with pytest.raises(
        ValueError,
        match=r"'packed' is a folder of packs, not a shard: .*'packed'\).* unpack packed -o SHARDS",
    ):
        expand("packed")


def test_folder_of_shards_is_refused_with_the_pattern_that_names_them(here: Path) -> None:
    (here / "shards").mkdir()
    (here / "shards" / "a.tar").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"folder of 1 shards; name them: 'shards/\*.tar'"):
        expand("shards")
    with pytest.raises(ValueError, match="folder of 1 shards"):
        expand("sh*")


# Reading


@pytest.fixture
def make_reader(tmp_path: Path) -> Callable[..., tuple[ShardReader, list[bytes]]]:
    def make(count: int, max_open: int = 64) -> tuple[ShardReader, list[bytes]]:
        rng = np.random.default_rng(0)
        contents = [rng.bytes(500 + i) for i in range(count)]
        paths = [tmp_path / f"{i}.tar" for i in range(count)]
        for path, data in zip(paths, contents, strict=True):
            path.write_bytes(data)
        names, sizes = [str(path) for path in paths], list(map(len, contents))
        return ShardReader(names, sizes, [""] * len(names), ShardOpener(), max_open), contents

    return make


Make = Callable[..., tuple[ShardReader, list[bytes]]]


def open_descriptors(folder: Path) -> int:
    """Open files of this process that lie in the folder."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{fd}").startswith(str(folder))
        except FileNotFoundError:  # the descriptor that listed the folder
            continue
    return count


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")


def test_reader_gives_the_bytes_asked_for(make_reader: Make) -> None:
    reader, contents = make_reader(2)
    assert reader.read(1, 0, 501) == contents[1]
    assert reader.read(0, 17, 40) == contents[0][17:57]
    assert reader.read(0, 500, 0) == b""


def test_range_past_the_end_is_an_error_that_names_the_shard(make_reader: Make) -> None:
    reader, _ = make_reader(1)
    with pytest.raises(OSError, match=r"shard '.*0.tar' ends at byte 500, inside a member: it has changed"):
        reader.read(0, 400, 101)


@pytest.mark.parametrize("change", [-1, 1, -500])
def test_shard_that_changed_its_size_is_an_error_that_names_it(change: int, make_reader: Make, tmp_path: Path) -> None:
    reader, contents = make_reader(2)
    (tmp_path / "1.tar").write_bytes((contents[1] + b"x")[: 501 + change])
    with pytest.raises(OSError, match=rf"1.tar' has {501 + change} bytes but had 501 when it was indexed"):
        reader.read(1, 0, 1)
    assert reader.read(0, 0, 500) == contents[0]


def test_shard_that_is_gone_is_an_error_that_names_it(make_reader: Make, tmp_path: Path) -> None:
    reader, _ = make_reader(2)
    (tmp_path / "1.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"1.tar"):
        reader.read(1, 0, 1)


def test_read_that_the_system_cuts_short_goes_on(make_reader: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, contents = make_reader(1)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, offset: pread(fd, min(n, 7), offset))
    assert reader.read(0, 3, 480) == contents[0][3:483]


@needs_proc
def test_few_files_are_open_at_a_time_and_none_after_the_reader(make_reader: Make, tmp_path: Path) -> None:
    before = open_descriptors(tmp_path)
    reader, contents = make_reader(10, max_open=3)
    for i in list(range(10)) * 2:
        assert reader.read(i, 0, 5) == contents[i][:5]
        assert open_descriptors(tmp_path) - before <= 3
    del reader
    assert open_descriptors(tmp_path) == before


@needs_proc
def test_many_threads_over_more_shards_than_may_be_open_read_right_bytes(make_reader: Make, tmp_path: Path) -> None:
    reader, contents = make_reader(12, max_open=2)
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(400):
            shard, offset = int(rng.integers(12)), int(rng.integers(400))
            try:
                data = reader.read(shard, offset, 100)
            except OSError as error:
                wrong.append(error)
            else:
                if data != contents[shard][offset : offset + 100]:
                    wrong.append((shard, offset))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert open_descriptors(tmp_path) <= 2


@needs_proc
def test_file_that_is_read_stays_open_until_the_read_is_over(
    make_reader: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, contents = make_reader(3, max_open=1)
    pread = os.pread

    def slow(fd: int, n: int, offset: int) -> bytes:
        monkeypatch.setattr(os, "pread", pread)
        reader.read(1, 0, 1)  # puts shard 0 out of the cache
        return pread(fd, n, offset)

    monkeypatch.setattr(os, "pread", slow)
    assert reader.read(0, 0, 500) == contents[0]
    assert open_descriptors(tmp_path) == 1


def test_process_forked_while_a_thread_holds_the_lock_can_read(make_reader: Make) -> None:
    reader, contents = make_reader(2)
    reader.read(0, 0, 1)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def read() -> None:
        theirs.send(reader.read(0, 0, 500))

    with reader._lock:  # as if another thread were opening a shard
        child = context.Process(target=read)
        child.start()
    try:
        assert ours.poll(20), "the child waits for a lock that nobody will let go of"
        assert ours.recv() == contents[0]
    finally:
        child.kill()
        child.join()


@needs_proc
def test_limit_of_the_cache_closes_no_local_shard(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.tar").write_bytes(bytes(600))
    names = [str(tmp_path / f"{i}.tar") for i in range(3)]
    reader = ShardReader(names, [600] * 3, [""] * 3, ShardOpener(tmp_path, cache_limit=1))
    for i in range(3):
        reader.read(i, 0, 1)
    assert open_descriptors(tmp_path) == 3
