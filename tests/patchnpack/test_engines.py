from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchnpack.engines import run_local, run_ray
from patchnpack.loaders import Index, scan
from patchnpack.loaders.prepacking.job import Job
from patchnpack.packer import Packing
from tests.images import encode_image, write_tar

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)
NEEDS_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="ray, of the extra [ray], is not installed")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four shards of 60 small images each."""
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    paths = []
    for s in range(4):
        members = []
        for i in range(60):
            pixels = rng.integers(0, 256, (*rng.integers(16, 60, 2), 3), np.uint8)
            members += [(f"{s}-{i}.png", encode_image(pixels, "PNG")), (f"{s}-{i}.cls", str(i % 5).encode())]
        paths.append(write_tar(folder / f"train-{s}.tar", members))
    return paths


@pytest.fixture(scope="module")
def index(shards: list[str]) -> Index:
    return scan(shards)


def job(index: Index, out: Path, **changes: Any) -> Job:
    given: dict[str, Any] = {"store": "patches", "part_packs": 2, "label": "cls", "shuffle": True}
    return Job(source=index, out=str(out), packing=PACKING, **given | changes)


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def expected(index: Index, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one process writes."""
    out = tmp_path_factory.mktemp("expected") / "out"
    seen: list[int] = []
    assert run_local(job(index, out), 1, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == len(index)
    return written(out)


def children(parent: int, text: str) -> list[int]:
    """Child processes whose command line contains a text."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            ppid = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if entry.name.isdecimal() and ppid == parent and text in command:
            found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.002)
    raise AssertionError(f"the condition was not met within {seconds} s")


def markers(out: Path) -> int:
    return len(list((out / "done").glob("*.json"))) if (out / "done").exists() else 0


# Processes of this machine


def test_two_workers_write_the_same_bytes_as_one(index: Index, tmp_path: Path, expected: dict[str, bytes]) -> None:
    seen: list[int] = []
    assert run_local(job(index, tmp_path / "out"), 2, seen.append)
    assert written(tmp_path / "out") == expected
    assert seen == sorted(seen)
    assert seen[-1] == len(index)


def test_killed_worker_raises_and_a_rerun_completes(index: Index, tmp_path: Path, expected: dict[str, bytes]) -> None:
    out = tmp_path / "out"

    def kill() -> None:
        wait_for(lambda: markers(out) > 2)
        os.kill(children(os.getpid(), "spawn_main")[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(OSError, match=r"a worker process was killed.*; finished parts are kept: run the same command"):
        run_local(job(index, out, part_packs=1), 2)
    killer.join()
    assert markers(out) > 0
    assert not (out / "manifest.json").exists()
    assert run_local(job(index, out, part_packs=1), 1)
    assert run_local(job(index, tmp_path / "other", part_packs=1), 1)
    assert written(out) == written(tmp_path / "other")


def test_errors_of_a_worker_are_raised(index: Index, shards: list[str], tmp_path: Path) -> None:
    work = job(index, tmp_path / "out")
    held = Path(shards[1]).read_bytes()
    Path(shards[1]).write_bytes(held[:-512])
    try:
        with pytest.raises(OSError, match=r"bring the index up to date"):
            run_local(work, 2)
    finally:
        Path(shards[1]).write_bytes(held)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_exit_with_their_parent_command(number: int, shards: list[str], index: Index, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-P", "-c", "from patchnpack.cli.main import run; run()", "pack", *shards]
    command += ["-o", str(out)]
    command += ["--seq-len", "64", "--patch-size", "8", "--max-images", "7", "--store", "patches", "--label", "cls"]
    command += ["--part-packs", "1", "--workers", "2", "--lookahead", "256"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: markers(out) > 2)
        workers = children(running.pid, "spawn_main")
        assert len(workers) == 2
        running.send_signal(number)
        running.communicate(timeout=60)
        assert running.returncode == (-number if number == signal.SIGKILL else 128 + number)
        wait_for(lambda: not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers))
    finally:
        running.kill()
        running.communicate()
    assert not (out / "manifest.json").exists()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"{len(index)} images, labels of 'cls', 0 bad, 0 skipped" in result.stdout
    job(index, tmp_path / "other", part_packs=1).run()
    assert written(out) == written(tmp_path / "other")


# Ray


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep Ray from writing a token into the home folder."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@NEEDS_RAY
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.usefixtures("no_token")
def test_ray_writes_the_same_bytes_as_one_process_after_a_worker_is_killed(
    index: Index, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: markers(out) > 2)
        (raylet,) = children(os.getpid(), "/raylet/raylet ")
        worker = wait_for(lambda: children(raylet, "ray::_run_task"))[0]
        os.kill(worker, signal.SIGKILL)
        if not (out / "manifest.json").exists():
            killed.append(worker)

    killer = threading.Thread(target=kill)
    killer.start()
    seen: list[int] = []
    assert run_ray(job(index, out), None, tasks=3, progress=seen.append)
    killer.join()
    assert len(killed) == 1
    assert written(out) == expected
    assert seen[-1] == len(index)


@NEEDS_RAY
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.usefixtures("no_token")
def test_errors_of_a_ray_task_are_raised(index: Index, shards: list[str], tmp_path: Path) -> None:
    work = job(index, tmp_path / "out")
    held = Path(shards[1]).read_bytes()
    Path(shards[1]).write_bytes(held[:-512])
    try:
        with pytest.raises(OSError, match=r"bring the index up to date"):
            run_ray(work, None, tasks=2)
    finally:
        Path(shards[1]).write_bytes(held)


@NEEDS_RAY
def test_unreachable_ray_address_raises_with_the_remedy(index: Index, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nothing listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for form in (address, "ray://" + address):
            with pytest.raises(OSError, match=r"Ray at .* does not answer .*ray start --head, or leave out"):
                run_ray(job(index, tmp_path / "out"), form)
    for wrong in ("host", "host:port", ":"):
        with pytest.raises(ValueError, match=f"the Ray address is '{wrong}'; give host:port"):
            run_ray(job(index, tmp_path / "out"), wrong)
    assert not (tmp_path / "out").exists()


def test_missing_ray_raises_with_the_install_command(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'patchnpack\[ray\]'"):
        run_ray(job(index, tmp_path / "out"), None)
