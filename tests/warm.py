"""Starts `patchnpack` and Python scripts in a moment: a process that has imported them all forks one a command.

    warm.py serve SOCKET                            prints "ready" and forks until it is ended
    warm.py run SOCKET patchnpack|python WORDS...   in this folder, with this environment, input and output

Each command would take 3 s to import torch; of the shell blocks of the docs there are dozens.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


def serve(address: str) -> None:
    import patchnpack.cli.doctor
    import patchnpack.cli.main
    import patchnpack.report.page
    import patchnpack.training  # noqa: F401 -- what the commands import when they run

    gc.collect()
    gc.freeze()  # children that never look at these objects share their memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who wait at a connection leave nothing to be waited for
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                answer(connection)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Runs the command that the connection asks for, sends its exit status, and ends this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, files, _, _ = socket.recv_fds(connection, 8, 3)
    text = b""
    while len(text) < int(length, 16):
        text += connection.recv(1 << 16)
    if (child := os.fork()) == 0:
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        connection.close()
        leave(begin, json.loads(text))
    connection.sendall(bytes([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255]))
    os._exit(0)


def leave(run: Callable[..., None], options: dict[str, Any]) -> NoReturn:
    """Runs and ends as Python does, but for taking apart what was imported, which takes half a second."""
    status = 0
    try:
        run(**options)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 -- as at the end of any script
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def begin(words: list[str], folder: str, environment: dict[str, str]) -> None:
    import runpy

    from patchnpack.cli.main import run

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    program, *sys.argv = words
    if program == "patchnpack":
        sys.argv = words
        run()
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
        runpy.run_path(sys.argv[0], run_name="__main__")


def ask(address: str, words: list[str]) -> int:
    """The exit status of a command."""
    text = json.dumps({"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"%08x" % len(text)], [0, 1, 2])
        connection.sendall(text)
        return (connection.recv(1) or b"\1")[0]


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
