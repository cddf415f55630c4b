"""The members of data sets that packed folders keep, leave out or refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patchnpack.loaders import Job
from tests.loaders.datasets.collections_of_images import Items
from tests.loaders.prepacking.dataset_kinds import PHOTOS
from tests.loaders.prepacking.folders import PACKING


def mixed_types(i: int) -> Any:
    return {"image": PHOTOS.pixels(i), "note": "text" if i < 5 else 7}


REFUSED: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    (
        lambda: Items(8, lambda i: {"image": PHOTOS.pixels(i), "when": {1, 2}}),
        {"extras": ["when"]},
        r"the member 'when' of the image with key '0' of data set Items cannot be packed: .* type builtins.set",
    ),
    (
        lambda: Items(8, lambda i: {"image": PHOTOS.pixels(i), "m": {"bytes": b"x", "path": None}}),
        {"extras": ["m"]},
        r"'m' .* cannot be packed: it is or holds a value of type builtins.bytes",
    ),
    (
        lambda: Items(8, mixed_types),
        {"extras": ["note"]},
        r"'note' of the image with key '[567]' .* its type is int, and the first value is text; give all rows the same",
    ),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_values_that_cannot_be_stored_are_named_with_a_remedy(tmp_path: Path, number: int) -> None:
    make, options, message = REFUSED[number]
    with pytest.raises((ValueError, RuntimeError), match=message):
        Job(source=make(), out=str(tmp_path / "out"), packing=PACKING, **options).run()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_members_that_are_left_out_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = Job(source=PHOTOS.hugging_face(), out=str(tmp_path / "out"), packing=PACKING, extras=["caption"])
    job.absolute().run()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text for text in warnings if "leaves out" in text] == [
        "the packed folder leaves out the members label of the data set Dataset; name them in label=, extras= "
        "or targets= to keep them"
    ]
