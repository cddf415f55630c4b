"""A file is complete or absent, also with concurrent writers."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from patchnpack.packer.files import atomic_write


def test_a_write_that_fails_halfway_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_synced_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, events = tmp_path / "file", []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        events.append((Path(name) == tmp_path, path.exists(), os.fstat(descriptor).st_size))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    atomic_write(path, lambda file: file.write(b"12345"))
    (folder_first, existed, size), (folder_second, exists, _) = events
    assert (folder_first, existed, size) == (False, False, 5)
    assert (folder_second, exists) == (True, True)


def test_threads_that_write_the_same_file_never_expose_a_partial_file(tmp_path: Path) -> None:
    path, wrong = tmp_path / "file", list[object]()

    def write(letter: bytes) -> None:
        for _ in range(30):
            try:
                atomic_write(path, lambda file: [file.write(letter * 1000) for _ in range(5)])
                if (size := path.stat().st_size) != 5000:
                    wrong.append(size)
            except OSError as error:
                wrong.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(set(path.read_bytes())) == 1
    assert list(tmp_path.iterdir()) == [path]
