"""Pre-packing killed, ended or out of room at any point: nothing broken reads as whole, and a rerun completes.

Each case is a forked child of this process, which has everything imported and compiled. A point is the n-th function
call or return that Python's profiler sees, with n drawn from a seed over all there are in an undisturbed run.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from patchnpack.loaders import Index, PackedImageLoader
from patchnpack.loaders.prepacking.job import Job
from patchnpack.loaders.prepacking.verify import verify
from patchnpack.packer import Packing

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)
KILLS, TERMS, FULLS = 200, 50, 20

Run = Callable[[Job, Callable[[], None]], int]


def job(store: Any, index: Index, out: Path) -> Job:
    return Job(source=index, out=str(out), packing=PACKING, store=store, part_packs=3, label="cls")


def in_child(job: Job, prepare: Callable[[], None] = lambda: None) -> int:
    """Run the job in a forked child after `prepare`; return the status that `os.waitpid` returns."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            gc.disable()
            prepare()
            code = 0 if job.run() else 1
        except OSError:
            code = 2
        finally:
            sys.setprofile(None)
            os._exit(code)
    return os.waitpid(child, 0)[1]


def kill_at(event: int, number: int) -> Callable[[], None]:
    """Return a function that makes the process send itself a signal at the n-th event."""

    def prepare() -> None:
        left = event

        def count(frame: FrameType, what: str, arg: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)

        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.setprofile(count)

    return prepare


def count_events(job: Job, note: Path) -> int:
    """Return the number of events of an undisturbed run."""
    seen = 0

    def prepare() -> None:
        def count(frame: FrameType, what: str, arg: object) -> None:
            nonlocal seen
            seen += 1

        sys.setprofile(count)

    child = os.fork()
    if child == 0:
        prepare()
        job.run()
        sys.setprofile(None)
        note.write_text(str(seen))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return int(note.read_text())


def written(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_whole_or_refused(out: Path, expected: dict[str, bytes]) -> bool:
    """Return whether the folder is finished; a finished one has the expected bytes, a loader refuses another."""
    if (out / "manifest.json").exists():
        assert verify(out).problems == []
        now = {name: data for name, data in written(out).items() if not name.endswith(".tmp")}
        assert now == expected
        return True
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"are not finished|does not exist|is a folder with 0 image|holds no file"
    ):
        PackedImageLoader(out, batch_size=1)
    # A file with its final name is whole, whichever process was killed.
    for name, data in written(out).items() if out.exists() else ():
        assert name.endswith(".tmp") or data == expected[name], name
    return False


class Fault:
    """One store, the bytes that an undisturbed run writes, and its number of events."""

    def __init__(self, store: str, index: Index, folder: Path) -> None:
        self.store, self.index, self.folder = store, index, folder
        assert job(store, index, folder / "warm").run()
        self.events = count_events(job(store, index, folder / "undisturbed"), folder / "events")
        self.expected = written(folder / "undisturbed")
        assert self.expected == written(folder / "warm")

    def run(self, prepare: Callable[[], None], name: str) -> tuple[int, bool]:
        """A disturbed run, and one after it that must complete: the first one's status, whether it had finished."""
        out = self.folder / name
        status = in_child(job(self.store, self.index, out), prepare)
        finished = check_whole_or_refused(out, self.expected)
        assert in_child(job(self.store, self.index, out)) == 0
        assert written(out) == self.expected
        return status, finished


@pytest.fixture(scope="module", params=["images", "patches"])
def fault(request: pytest.FixtureRequest, index: Index, tmp_path_factory: pytest.TempPathFactory) -> Fault:
    return Fault(request.param, index, tmp_path_factory.mktemp("fault"))


def killed_at(fault: Fault, points: int, number: int, seed: int) -> None:
    draw, died = random.Random(seed), 0
    for point in range(points):
        status, _ = fault.run(kill_at(draw.randint(1, fault.events), number), f"{number}-{seed}-{point}")
        died += os.WIFSIGNALED(status) and os.WTERMSIG(status) == number
    assert died >= points * 0.95  # the last few events may come after the end of a run


def full_at(fault: Fault, points: int, seed: int) -> None:
    draw, failed = random.Random(seed), 0
    largest = max(map(len, fault.expected.values()))
    for point in range(points):
        most = draw.randint(1, largest)
        limit = (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        status, finished = fault.run(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit), f"full-{seed}-{point}")  # noqa: B023
        assert (os.waitstatus_to_exitcode(status) == 0) == finished
        assert os.waitstatus_to_exitcode(status) in (0, 2)
        failed += not finished
    assert failed >= points * 0.9


def test_job_killed_at_some_points_leaves_nothing_broken_and_a_rerun_completes(fault: Fault) -> None:
    killed_at(fault, 6, signal.SIGKILL, seed=0)


def test_job_terminated_at_some_points_leaves_nothing_broken_and_a_rerun_completes(fault: Fault) -> None:
    killed_at(fault, 2, signal.SIGTERM, seed=1)


def test_full_disk_at_some_points_leaves_nothing_broken_and_a_rerun_completes(fault: Fault) -> None:
    full_at(fault, 3, seed=2)


@pytest.mark.soak
def test_job_killed_at_200_points_leaves_nothing_broken(fault: Fault) -> None:
    killed_at(fault, KILLS, signal.SIGKILL, seed=3)


@pytest.mark.soak
def test_job_terminated_at_50_points_leaves_nothing_broken(fault: Fault) -> None:
    killed_at(fault, TERMS, signal.SIGTERM, seed=4)


@pytest.mark.soak
def test_full_disk_at_20_points_leaves_nothing_broken(fault: Fault) -> None:
    full_at(fault, FULLS, seed=5)


def test_job_killed_repeatedly_completes_at_last(fault: Fault) -> None:
    out, draw = fault.folder / "again", random.Random(6)
    for _ in range(12):
        in_child(job(fault.store, fault.index, out), kill_at(draw.randint(1, fault.events // 4), signal.SIGKILL))
        check_whole_or_refused(out, fault.expected)
    assert in_child(job(fault.store, fault.index, out)) == 0
    assert written(out) == fault.expected


def test_full_disk_raises_with_the_fix(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    tmpfs = fault.folder / "small"
    tmpfs.mkdir()
    size = sum(map(len, fault.expected.values())) // 2
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmpfs)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        out = tmpfs / "out"
        with pytest.raises(OSError, match=r"no room for .*Finished files are kept: make room and run"):
            job(fault.store, fault.index, out).run()
        assert not check_whole_or_refused(out, fault.expected)
        subprocess.run(["mount", "-o", f"remount,size={100 * size}", str(tmpfs)], check=True)
        assert job(fault.store, fault.index, out).run()
        assert written(out) == fault.expected
    finally:
        subprocess.run(["umount", str(tmpfs)], check=True)


# Who writes


@pytest.mark.parametrize("tasks", [2, 7, 100])
def test_tasks_in_any_order_write_the_same_bytes(tasks: int, fault: Fault) -> None:
    out, order = fault.folder / f"tasks-{tasks}", list(range(tasks))
    random.Random(tasks).shuffle(order)
    done = []
    for task in order:
        assert not (out / "manifest.json").exists() or tasks == 100
        done.append(job(fault.store, fault.index, out).run(task, tasks))
    assert done[-1]
    assert written(out) == fault.expected


def test_concurrent_and_repeated_tasks_write_the_same_bytes(fault: Fault) -> None:
    out = fault.folder / "crowd"
    children = []
    for task in (0, 1, 2, 0, 1, 2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                job(fault.store, fault.index, out).run(task, 3)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    assert job(fault.store, fault.index, out).run()
    assert written(out) == fault.expected


def test_rerun_writes_no_part_again(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    out = fault.folder / "rerun"
    job(fault.store, fault.index, out).run()
    before = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    (out / "manifest.json").unlink()
    lost = sorted(before)[1]
    (out / "done" / f"{lost.stem}.json").unlink()
    assert job(fault.store, fault.index, out).run()
    after = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    assert {path for path in before if before[path] != after[path]} == {lost}
    assert written(out) == fault.expected
