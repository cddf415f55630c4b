"""Import an example as its script would be: with its neighbours `shapes` and `scenes`."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# With PYTHONSAFEPATH set, a script does not find its neighbours.
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(EXAMPLES), os.environ.get("PYTHONPATH")]))}


def load_script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import examples/NAME.py; the modules that it imports from its folder are forgotten with `monkeypatch`."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for neighbour in ("shapes", "scenes"):  # other tests may have changed the sides of their pictures
        monkeypatch.delitem(sys.modules, neighbour, raising=False)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
