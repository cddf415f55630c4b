"""Remote files through fsspec: listing, reading, writing, failures and missing packages."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest

from patchnpack.loaders.remote.download import expand_remote, put, stat
from patchnpack.loaders.remote.errors import RemoteError, RemoteNotFound
from tests.loaders.remote.fetching import QUICK, fetch, noise


class _Failing(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """A file system whose next calls fail with `failures`, in order."""

    protocol = "failing"
    failures: list[Exception | Callable[[], Any]] = []  # noqa: RUF012 - fsspec creates the instances

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("failing://", "memory://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            failure()
        return bytes(super().cat_file(path, start, end, **options))


@pytest.fixture
def memory() -> Iterator[Any]:
    fsspec.register_implementation("failing", _Failing, clobber=True)
    system = fsspec.filesystem("failing")
    yield system
    system.store.clear()
    _Failing.failures = []


def test_fsspec_protocol_is_listed_and_read(memory: Any, tmp_path: Path) -> None:
    for i in range(3):
        memory.pipe(f"/d/t-{i}.tar", noise(1000, i))
    urls = expand_remote("memory://d/t-*.tar")
    assert [url.rpartition("/")[2] for url in urls] == ["t-0.tar", "t-1.tar", "t-2.tar"]
    assert fetch(stat(urls[1]), tmp_path / "a") == noise(1000, 1)
    with pytest.raises(RemoteNotFound):
        stat("memory://d/t-9.tar")
    memory.pipe("/d/e/t.tar", b"")
    with pytest.raises(RemoteError, match="this is a folder"):
        stat("memory://d/e")


def test_fsspec_protocol_is_written(memory: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(noise(1000))
    put("memory://d/index.parquet", tmp_path / "a")
    assert fetch(stat("memory://d/index.parquet"), tmp_path / "b") == noise(1000)


def test_fsspec_failures_and_stalls_are_retried(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/d/t.tar", noise(1000))
    file = stat("failing://d/t.tar", policy=QUICK)
    over = threading.Event()
    _Failing.failures = [ConnectionError("the key is WORD"), lambda: over.wait(10), RuntimeError("no")]
    began = time.monotonic()
    assert fetch(file, tmp_path / "a") == noise(1000)
    assert 0.5 < time.monotonic() - began < 5
    over.set()
    _Failing.failures = [ConnectionError("the key is WORD")] * 4
    with pytest.raises(RemoteError, match=r"the file system failed with ConnectionError \(4 attempts"):
        fetch(file, tmp_path / "a")


def test_changed_fsspec_file_is_refused(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/d/t.tar", noise(1000))
    file = stat("failing://d/t.tar", policy=QUICK)
    memory.pipe("/d/t.tar", noise(1000, 1))
    with pytest.raises(RemoteError, match="the file has changed"):
        fetch(file, tmp_path / "a")
    file = stat("failing://d/t.tar", policy=QUICK)
    _Failing.failures = [lambda: memory.pipe("/d/t.tar", noise(1000, 2))]
    with pytest.raises(RemoteError, match=r"the file has changed during the download .*\(1 attempt in"):
        fetch(file, tmp_path / "a")


@pytest.mark.skipif(find_spec("huggingface_hub") is not None, reason="huggingface_hub is installed")
def test_missing_huggingface_hub_is_named() -> None:
    with pytest.raises(RemoteError, match=r"hf:// cannot be read .*pip install huggingface_hub"):
        stat("hf://datasets/org/name/t.tar", policy=QUICK)


def test_unknown_protocol_is_refused() -> None:
    with pytest.raises(RemoteError, match="the protocol nosuch:// is unknown"):
        stat("nosuch://host/t.tar", policy=QUICK)


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'patchnpack\[remote\]'"):
        stat("https://host/t.tar", policy=QUICK)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ModuleNotFoundError, match=r"need fsspec.*pip install 'patchnpack\[remote\]'"):
        stat("hf://datasets/org/name/t.tar", policy=QUICK)


def test_importing_the_package_imports_neither_fsspec_nor_obstore() -> None:
    imports = "import sys, patchnpack.loaders.remote.download"
    script = f"{imports}; assert not {{'fsspec.core', 'obstore'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=60)
