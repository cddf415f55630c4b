"""The manifest of pre-packed data: written last, when everything else is there, it says what there is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from patchnpack.loaders.errors import BadRow
from patchnpack.loaders.packs.recipe import MANIFEST, RECIPE, SCHEMA, Recipe, as_json
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.download import name_of
from patchnpack.loaders.remote.storage import Folder


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished folder holds.

    Attributes:
        recipe: what it was made by.
        counts: packs, images, tokens, slots, bad, oversize, skipped, without_label; over all plans.
        padding: share of the slots.
        packs: for each epoch, the packs of each stream.
        files: for each file (name), its nbytes and digest, and of a part what its marker says.
        bad: the first images that could not be used: row, key, shard, offset, stage, reason.
        num_classes: outputs that a classifier of the labels needs, None if unknown.
        label_shape: () for classes, (D,) for targets.
        kinds: how members are read whose name does not tell.
    """

    recipe: Recipe
    counts: dict[str, int]
    padding: float
    packs: list[list[int]]
    files: dict[str, dict[str, Any]]
    bad: list[dict[str, Any]]
    num_classes: int | None
    label_shape: tuple[int, ...]
    kinds: dict[str, str]

    def to_json(self) -> bytes:
        """The manifest as the text of a file."""
        rest = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "recipe"}
        return as_json({"schema": SCHEMA, "recipe": json.loads(self.recipe.to_json()), **rest})


def bad_entry(bad: BadRow) -> dict[str, Any]:
    """Return a bad image as it is written: its shard by name only, so that moving the shards changes no byte."""
    return {**asdict(bad), "shard": name_of(bad.shard)}


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of a finished folder.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: the folder holds something else, is unfinished, of another schema, or damaged.
    """
    where = redact(folder.address)
    text = folder.read(MANIFEST)
    if text is None:
        if (begun := folder.read(RECIPE)) is not None:
            _values(begun, f"{where}/{RECIPE}", where)
            raise ValueError(
                f"the packs in {where!r} are not finished; run the same patchnpack pack command again: it goes on "
                "where it ended"
            )
        raise FileNotFoundError(f"{where!r} holds no packs; make them with: patchnpack pack SHARDS -o {where}")
    values = _values(text, f"{where}/{MANIFEST}", where)
    try:
        recipe = Recipe.from_plain(values["recipe"])
        rest = {name: values[name] for name in Manifest.__dataclass_fields__ if name != "recipe"}
        return Manifest(recipe=recipe, **rest | {"label_shape": tuple(rest["label_shape"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}/{MANIFEST} is damaged ({type(error).__name__}: {error}); {_anew(where)}") from error


def check_recipe(text: bytes, folder: Folder) -> None:
    """Raises ValueError if `text` is no recipe of this schema."""
    where = redact(folder.address)
    _values(text, f"{where}/{RECIPE}", where)


def _values(text: bytes, name: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
        schema = values["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name} is damaged or no file of patchnpack ({error}); {_anew(where)}") from None
    if schema != SCHEMA:
        raise ValueError(
            f"{name} is of schema {schema}, this is {SCHEMA}; read it with the patchnpack that made it, or pack anew "
            "into another folder"
        )
    assert isinstance(values, dict)
    return values


def _anew(where: str) -> str:
    return f"delete {where!r} if it may go, and pack anew, or pack into another folder"
