"""Import each module once for its doctests, under its installed name.

pytest would import packer/config.py as `packer.config`, a second copy with other classes than
`patchnpack.packer.config`.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent
_FOLDERS = tuple(_ROOT / name for name in ("packer", "loaders", "models", "trainer"))


def pytest_collect_file(file_path: Path) -> None:
    """Map a file to the installed module, whose name differs from the path."""
    if file_path.suffix == ".py" and any(file_path.is_relative_to(folder) for folder in _FOLDERS):
        path = file_path.parent if file_path.stem == "__init__" else file_path.with_suffix("")
        name = ".".join(path.relative_to(_ROOT).parts)
        sys.modules[name] = importlib.import_module(f"patchnpack.{name}")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes and sets by their argument: the bytes of a drawn file may hold the time, and sets have no order."""
    return argname if isinstance(val, bytes | set | frozenset) else None


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Cache indexes in a folder of this run, also in processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHNPACK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _log_level_of_its_own() -> Iterator[None]:
    """Undo the log level that a command sets, so that tests give the same results in any order and process."""
    logger = logging.getLogger("patchnpack")
    level = logger.level
    yield
    logger.setLevel(level)


# The files that take longest, longest first. Begun last, one of them would keep one process busy while the others idle.
_LONGEST = (
    "test_start_page.py",
    "test_ddp.py",
    "test_ranks.py",
    "test_shell_blocks.py",
    "test_resume.py",
    "test_engines.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, and keep the order of all others."""
    order = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(_LONGEST)))
