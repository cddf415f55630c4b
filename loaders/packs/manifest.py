"""The manifest of a packed folder: it is written last and lists everything else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from patchnpack.loaders.errors import BadRow
from patchnpack.loaders.packs.recipe import MANIFEST, RECIPE, SCHEMA, Recipe, as_json
from patchnpack.loaders.remote.addresses import name_of, redact
from patchnpack.loaders.remote.storage import Folder


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a finished packed folder.

    Attributes:
        recipe: what the folder was made by.
        counts: packs, samples, images, tokens, slots, bad (images), left_out (images, with a bad one of their sample),
            oversize, undersize, skipped (samples), without_label; over all plans.
        padding: share of the slots that hold no token.
        packs: for each epoch, the number of packs of each stream.
        files: for each file by name, its nbytes and digest; for a part, also the other fields of its marker.
        bad: the first images that could not be used: row, key, shard, offset, stage, reason.
        num_classes: outputs that a classifier of the labels needs, None if unknown.
        label_shape: () for classes, (D,) for targets.
        kinds: "txt" or "json" for members whose name does not show how they are read.
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
        """Return the manifest as the text of a file."""
        rest = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "recipe"}
        return as_json({"schema": SCHEMA, "recipe": json.loads(self.recipe.to_json()), **rest})


def bad_entry(bad: BadRow) -> dict[str, Any]:
    """Return a bad image as it is written: its shard by name only, so that moving the shards changes no byte."""
    return {**asdict(bad), "shard": name_of(bad.shard)}


def read_manifest(folder: Folder) -> Manifest:
    """Read the manifest of a finished folder.

    Raises:
        FileNotFoundError: the folder holds no packs.
        ValueError: the folder holds something else, is unfinished, has another schema, or is damaged.
    """
    where = redact(folder.address)
    text = folder.read(MANIFEST)
    if text is None:
        if (started := folder.read(RECIPE)) is not None:
            _values(started, f"{where}/{RECIPE}", where)
            raise ValueError(
                f"the packs in {where!r} are not finished; run the same patchnpack pack command again: it resumes "
                "where it stopped"
            )
        raise FileNotFoundError(f"{where!r} holds no packs; make them with: patchnpack pack SHARDS -o {where}")
    values = _values(text, f"{where}/{MANIFEST}", where)
    try:
        recipe = Recipe.from_plain(values["recipe"])
        rest = {name: values[name] for name in Manifest.__dataclass_fields__ if name != "recipe"}
        return Manifest(recipe=recipe, **rest | {"label_shape": tuple(rest["label_shape"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}/{MANIFEST} is damaged ({type(error).__name__}: {error}); {_pack_again(where)}"
        ) from error


def check_recipe(text: bytes, folder: Folder) -> None:
    """Raise ValueError if `text` is not a recipe of this schema."""
    where = redact(folder.address)
    _values(text, f"{where}/{RECIPE}", where)


def _values(text: bytes, name: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
        schema = values["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name} is damaged or not a file of patchnpack ({error}); {_pack_again(where)}") from None
    if schema != SCHEMA:
        raise ValueError(
            f"{name} has schema {schema}, this version reads {SCHEMA}; read it with the patchnpack that made it, or "
            "pack again into another folder"
        )
    assert isinstance(values, dict)
    return values


def _pack_again(where: str) -> str:
    return f"delete {where!r} if you no longer need it and pack again, or pack into another folder"
