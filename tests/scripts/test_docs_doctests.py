from __future__ import annotations

import importlib.util
from pathlib import Path

_PATH = Path(__file__).resolve().parents[2] / "scripts" / "docs_doctests.py"
_SPEC = importlib.util.spec_from_file_location("docs_doctests", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
docs_doctests = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(docs_doctests)


def test_examples_are_fenced_up_to_the_next_empty_line() -> None:
    text = "Adds.\n\n>>> 1 + (\n...     1)\n2\n\nMore.\n\n    >>> 2\n    2"
    fenced = "Adds.\n\n```pycon\n>>> 1 + (\n...     1)\n2\n```\n\nMore.\n\n    ```pycon\n    >>> 2\n    2\n    ```"
    assert docs_doctests.fence(text) == fenced


def test_text_without_examples_is_unchanged() -> None:
    assert docs_doctests.fence("A >>> B\n\n    drawn >>> here") == "A >>> B\n\n    drawn >>> here"
