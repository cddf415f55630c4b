"""Engines that run the tasks of a pre-packing job: processes on this machine, or a Ray cluster."""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Any

from patchnpack.loaders.packs.recipe import MARKERS
from patchnpack.loaders.prepacking.job import Job
from patchnpack.loaders.remote.addresses import is_remote
from patchnpack.packer.checks import check_whole

Progress = Callable[[int], None]  # called with the number of images written so far

_CONNECT_S = 10.0  # time limit for a Ray address to accept a connection
_TASKS_PER_CPU = 4  # with Ray, so that the last tasks end at about the same time
_RETRIES = 20  # of a task when its worker or node dies


def run_local(job: Job, workers: int, progress: Progress = lambda images: None) -> bool:
    """Run all tasks in `workers` processes on this machine; return whether the folder is finished.

    Raises:
        OSError: a worker was killed, or the disk is full.
        ValueError, BadDataError: as in `Job.run`.
    """
    check_whole("workers", workers)
    if workers == 1:
        written = 0

        def count(images: int) -> None:
            nonlocal written
            written += images
            progress(written)

        return job.run(progress=count)
    # Spawned, not forked: this process may have threads of torch or of the decoders.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        sent = job.absolute()
        futures = [pool.submit(sent.run, task, workers) for task in range(workers)]
        try:
            while True:
                done, left = wait(futures, timeout=_pause(job), return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                progress(_written(job))
                if not left:
                    break
        except BrokenProcessPool:
            raise OSError(
                "a worker process was killed, perhaps for lack of memory; finished parts are kept: run the same "
                "command again, with fewer --workers if memory is short"
            ) from None
        except BaseException:
            _kill(pool, futures)
            raise
    return job.run()  # finishes the folder if the last two tasks ended at the same time


def run_ray(job: Job, address: str | None, tasks: int | None = None, progress: Progress = lambda images: None) -> bool:
    """Run all tasks on a Ray cluster; return whether the folder is finished.

    Args:
        job: its folder and its shards must be the same for all nodes: on a shared file system, or addresses.
        address: the cluster, "host:port", "ray://host:port" or "auto"; None starts one on this machine.
        tasks: number of tasks; None is four per CPU of the cluster.
        progress: called with the number of images written so far.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        OSError: the address does not answer, or the nodes write elsewhere.
        ValueError, BadDataError: as in `Job.run`.
    """
    if tasks is not None:
        check_whole("tasks", tasks)
    ray = _ray()
    _check_answers(address)
    with _connected(ray, address):
        count = tasks or _TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        run_task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_run_task)
        sent = ray.put(job.absolute())
        left = [run_task.remote(sent, task, count) for task in range(count)]
        while left:
            done, left = ray.wait(left, num_returns=len(left), timeout=_pause(job))
            for reference in done:
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    raise OSError(
                        f"a task was lost {_RETRIES} times ({type(error).__name__}); finished parts are kept: look at "
                        "the cluster's log, and run the same command again"
                    ) from error
            progress(_written(job))
    if not job.folder.names(MARKERS, ".json"):
        raise OSError(
            f"the cluster's tasks have ended, and {job.out!r} is empty on this machine: each node writes to its own "
            "folder; name a folder that all nodes share, or an object store"
        )
    return job.run()


def _run_task(job: Job, task: int, num_tasks: int) -> bool:
    return job.run(task, num_tasks)


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ModuleNotFoundError(
            "--engine ray needs ray, which is not installed: pip install 'patchnpack[ray]'", name="ray"
        ) from None


def _check_answers(address: str | None) -> None:
    """Raise OSError if nothing listens: Ray itself would try for minutes and report less."""
    if address in (None, "auto", "local"):
        return
    assert address is not None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"the Ray address is {address!r}; give host:port, ray://host:port or auto")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise OSError(
            f"Ray at {address} does not answer ({error}); start it with: ray start --head, or leave out --ray-address "
            "to use this machine"
        ) from None


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    if ray.is_initialized():  # by the caller, who also shuts it down
        yield
        return
    with TemporaryDirectory() as empty:
        # An empty working folder: Ray puts the working folder first on the nodes' module path, where the folders of a
        # checkout would hide the installed package.
        given: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.WARNING,
            "runtime_env": {"working_dir": empty},
        }
        if address is None:
            given["include_dashboard"] = False
        try:
            ray.init(address=address or "local", **given)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise OSError(
                f"Ray at {address or 'this machine'} cannot be used ({error}); start it with: ray start --head, or "
                "leave out --ray-address to use this machine"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def _pause(job: Job) -> float:
    return 5.0 if is_remote(job.out) else 0.5


_read: dict[str, dict[str, int]] = {}  # for each folder, the images in each marker that was read


def _written(job: Job) -> int:
    """Return the number of images in all parts that are present."""
    seen = _read.setdefault(job.out, {})
    for name in job.folder.names(MARKERS, ".json"):
        if name not in seen and (text := job.folder.read(f"{MARKERS}/{name}")) is not None:
            seen[name] = int(json.loads(text)["images"])
    return sum(seen.values())


def _end_with_parent() -> None:
    """End this worker when its parent process has ended, however it ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _kill(pool: ProcessPoolExecutor, futures: list[Future[bool]]) -> None:
    """Kill the workers at once, which is safe: each file is whole or absent."""
    for future in futures:
        future.cancel()
    for process in list((pool._processes or {}).values()):
        with suppress(ProcessLookupError):
            process.kill()
