"""Doctests meet each module once, under its installed name.

pytest would import packer/batch.py as `packer.batch`: a second copy, with other classes than `patchnpack.packer.batch`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

_ROOT = Path(__file__).parent
_FOLDERS = (_ROOT / "packer", _ROOT / "loaders", _ROOT / "models")


def pytest_collect_file(file_path: Path) -> None:
    """Give pytest the installed module for a file of a package that is installed under another name."""
    if file_path.suffix == ".py" and file_path.parent in _FOLDERS:
        path = file_path.parent if file_path.stem == "__init__" else file_path.with_suffix("")
        name = ".".join(path.relative_to(_ROOT).parts)
        sys.modules[name] = importlib.import_module(f"patchnpack.{name}")
