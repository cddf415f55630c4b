"""Run `patchnpack` and Python scripts without start-up time: a server imports everything and forks once per command.

    warm.py serve SOCKET                            prints "ready" and serves until it is terminated
    warm.py run SOCKET patchnpack|python WORDS...   runs here, with this environment, input and output

Importing torch takes 3 s per command, and the shell blocks of the docs hold dozens of commands.
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
    import patchnpack.engines
    import patchnpack.loaders.prepacking.unpack
    import patchnpack.loaders.prepacking.verify
    import patchnpack.loaders.shards.folders.writer
    import patchnpack.predict
    import patchnpack.report.page
    import patchnpack.training  # noqa: F401 -- the modules that commands import when they run
    from patchnpack import pack_stream  # noqa: F401

    gc.collect()
    gc.freeze()  # keeps the memory of these objects shared with the children
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that answer a connection are not waited for
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
    """Run the command that the connection requests, send its exit status, and exit."""
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
    """Run and exit as Python does, without unloading modules, which takes half a second."""
    status = 0
    try:
        run(**options)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 -- as Python does at the end of a script
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
    """Send a command to the server, and return its exit status."""
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
