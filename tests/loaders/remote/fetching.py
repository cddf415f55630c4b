"""Downloads for tests: a quick retry policy and random bytes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from patchnpack.loaders.remote.download import RemoteFile, download
from patchnpack.loaders.remote.retry import Retry

QUICK = Retry(attempts=4, deadline_s=10, stall_s=0.5, pause_s=0.01)


def noise(nbytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def fetch(file: RemoteFile, to: Path, policy: Retry = QUICK, options: dict[str, Any] | None = None) -> bytes:
    """Download a file and return its bytes."""
    download(file, to, options, policy=policy)
    return to.read_bytes()
