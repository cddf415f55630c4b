"""Whole processes: interrupted, failing, resumed in a new process, or running for a long time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

LOOP = """
import hashlib, json, os, signal, sys, threading, time
import numpy as np
from torch.utils.data import DataLoader
from patchnpack import PackedImageLoader, Packing, PatchSizes, BetaDrop
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore SIGINT
options = json.loads(sys.argv[1])
packing = Packing(
    seq_len=48,
    patch_size=PatchSizes((4, 8)) if options.get("sizes") else 8,
    token_drop=BetaDrop(0.3, 0.6),
    balance=16,
)
loader = PackedImageLoader(
    options["shards"], packing, batch_size=1, shuffle=True, label="cls", num_threads=options.get("threads", 1),
    repeat=options.get("repeat", False), block=2, prefetch=options.get("prefetch", 2),
)
workers = options.get("workers", 0)
if options.get("epoch"):
    loader.set_epoch(options["epoch"])
data = loader
if options.get("dataset"):
    data = DataLoader(loader.as_dataset(), batch_size=None, num_workers=workers)
if options.get("state"):
    loader.load_state_dict(options["state"])
def digest(batch):
    parts = (batch.patches, batch.segment_ids, batch.coords, batch.grids, batch.labels, batch.rows)
    found = hashlib.sha256(repr((batch.keys, batch.step, batch.epoch, batch.position)).encode())
    for part in parts:
        found.update(part.numpy().tobytes())
    return found.hexdigest()
"""

TAIL = (
    LOOP
    + """
found, states = [], []
for batch in data:
    found.append(digest(batch))
    states.append(loader.state_dict(after=batch))
    if len(found) == options["count"]:
        break
print(json.dumps([found, states]))
"""
)


def run(code: str, options: dict[str, Any], **settings: Any) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(options)],
        check=True,
        capture_output=True,
        text=True,
        **settings,
    )
    return json.loads(done.stdout.splitlines()[-1])


CASES: list[dict[str, Any]] = [
    {"threads": 1},
    {"threads": 4},
    {"dataset": True, "workers": 0},
    {"dataset": True, "workers": 2},
    {"threads": 2, "epoch": 2},
    {"threads": 4, "repeat": True},
    {"threads": 4, "sizes": True},
    {"dataset": True, "workers": 2, "repeat": True, "sizes": True},
]


def check_resume(case: dict[str, Any], steps: list[int], shards: list[str]) -> None:
    """Assert that a new process, resumed after each of the steps, gives the tail of an uninterrupted run."""
    options = case | {"shards": shards, "count": 10**9 if not case.get("repeat") else 80}
    whole, states = run(TAIL, options)
    assert len(whole) > 50
    for step in steps:
        done = step % (len(whole) - 1)
        resumed = {key: value for key, value in options.items() if key != "epoch"}
        tail, _ = run(TAIL, resumed | {"state": states[done], "count": min(options["count"], len(whole) - done - 1)})
        assert tail == whole[done + 1 :], f"after {done + 1} batches"


@pytest.mark.parametrize("case", CASES[3:5] + CASES[7:], ids=str)
def test_new_process_resumes_with_the_next_batch(case: dict[str, Any], make_drawn: Any) -> None:
    check_resume(case, [17], make_drawn((60, 50, 55, 55)).shards)


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES, ids=str)
def test_new_process_resumes_after_each_of_fifty_steps(case: dict[str, Any], make_drawn: Any) -> None:
    check_resume(case, list(range(50)), make_drawn((60, 50, 55, 55)).shards)


ENDLESS = (
    LOOP
    + """
print(os.getpid(), flush=True)
for i, batch in enumerate(data):
    if i == 3:
        print("running", flush=True)
        if options.get("raise"):
            raise RuntimeError("in the training loop")
    time.sleep(0.01)
"""
)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
@pytest.mark.parametrize("case", [{"threads": 4}, {"dataset": True, "workers": 2}], ids=str)
@pytest.mark.parametrize("how", ["interrupt", "exception"])
def test_interrupted_run_leaves_no_process_and_no_shared_memory(how: str, case: dict[str, Any], drawn: Any) -> None:
    shared = set(os.listdir("/dev/shm"))
    options = case | {"shards": drawn.shards, "repeat": True, "raise": how == "exception"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ENDLESS, json.dumps(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert process.stdout.readline() == "running\n"
    children = children_of(process.pid)
    if how == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
    began = time.monotonic()
    try:
        _, errors = process.communicate(timeout=30)
    finally:
        if process.poll() is None:  # no process may outlive the test
            os.killpg(process.pid, signal.SIGKILL)
    assert time.monotonic() - began < 20
    assert process.returncode != 0
    assert ("KeyboardInterrupt" if how == "interrupt" else "in the training loop") in errors
    assert "terminate called" not in errors
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{child}") for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if os.path.exists(f"/proc/{child}")]
    assert {name for name in os.listdir("/dev/shm") if name.startswith("torch_")} <= shared


LONG = (
    LOOP
    + """
def state():
    with open("/proc/self/status") as file:
        memory = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
    return memory, len(os.listdir("/proc/self/fd")), threading.active_count()
early = None
for i, batch in enumerate(data, 1):
    if i == options["count"] // 10:
        early = state()
    if i == options["count"]:
        late = state()
        break
print(json.dumps([early, late]))
"""
)


def check_long(count: int, shards: list[str]) -> None:
    early, late = run(LONG, {"shards": shards, "repeat": True, "threads": 2, "count": count})
    assert late[0] < early[0] * 1.05 + 4096  # KiB
    assert late[1:] == early[1:]


def test_memory_files_and_threads_are_flat(drawn: Any) -> None:
    check_long(3000, drawn.shards)


@pytest.mark.soak
def test_memory_files_and_threads_are_flat_over_100_000_batches(drawn: Any) -> None:
    check_long(100_000, drawn.shards)
