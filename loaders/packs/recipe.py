"""The recipe of a packed folder: everything that its bytes depend on, and the names of its files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from patchnpack.loaders.error_policy import OnBad
from patchnpack.loaders.imaging.pages import Pages
from patchnpack.loaders.shards.patterns import PACKED_FOLDER_FILES
from patchnpack.loaders.targets.boxes import Boxes
from patchnpack.loaders.targets.map import Map
from patchnpack.loaders.targets.mask import Mask
from patchnpack.loaders.targets.points import Keypoints, Polygons
from patchnpack.loaders.targets.target import Target
from patchnpack.packer import Frames, Packing, PatchSizes, ScheduledDrop, ScheduledResolution, Views
from patchnpack.packer.binpacking.pricing.prices import Prices
from patchnpack.packer.config import TOKEN_DROPS
from patchnpack.packer.policies.sampled_resolution import RESOLUTIONS

StoreKind = Literal["images", "patches"]

SCHEMA = 4  # of the folder and of all files in it
RECIPE, MANIFEST = PACKED_FOLDER_FILES
ROWS = "rows.arrow"
PARTS, MARKERS, PLANS = "parts", "done", "plans"  # folders
_COMPRESSIONS: dict[StoreKind, tuple[str | None, ...]] = {"images": (None,), "patches": (None, "lz4", "zstd")}
_KINDS: dict[str, Callable[..., Any]] = {
    **{kind.__name__: kind for kind in (*RESOLUTIONS, *TOKEN_DROPS, Frames, PatchSizes, Prices, Packing)},
    Views.__name__: lambda groups: Views(*groups),
    **{kind.__name__: kind for kind in (Boxes, Keypoints, Map, Mask, Polygons)},
}


def check_store(kind: str) -> None:
    """Raise ValueError if there is no store of this kind."""
    if kind not in get_args(StoreKind):
        raise ValueError(f"store is {kind!r}; it must be 'images' or 'patches'")


def unit_name(epoch: int, stream: int, number: int) -> str:
    """Return the name, without ending, of part `number` of one stream of one epoch.

    >>> unit_name(0, 2, 31)
    'e0000-s002-00000031'
    """
    return f"e{epoch:04d}-s{stream:03d}-{number:08d}"


def plan_name(epoch: int, stream: int) -> str:
    """Return the name of the file with the plan of one stream of one epoch."""
    return f"{PLANS}/e{epoch:04d}-s{stream:03d}.arrow"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides every byte of a packed folder. Tasks with different recipes do not write into the same folder.

    Attributes:
        store: "images", encoded bytes in the order of their packs, or "patches", packs as they are trained on.
        packing: what a sequence looks like, its algorithm decided.
        epochs: number of plans, one per epoch.
        seed, shuffle, shuffle_window, num_streams: of the order that is planned, as for `PackedImageLoader`.
        block: consecutive packs of one patch size, with `PatchSizes`; None without.
        part_packs: packs per part.
        compression: of a patch store's parts: None, "lz4" or "zstd".
        image: extensions of image files.
        sample: the rule that says which images are one sample; None for one image each.
        label: None, or the member (and field) that holds the label.
        classes: index of each class name; None where labels are numbers.
        extras: members that batches return.
        targets: what batches return of each image besides, by name.
        max_pixels, max_bytes, truncated, on_bad: as for `ErrorPolicy`; they decide which images are bad, and what these
            leave out.
        decode: the name of a `decode` function that decided, too; None without one.
        formats: the extension, class and version of each reader of a user's format.
        pages: as for `PackedImageLoader`; it decides, too.
        source: names of the shards, number of images, a digest of everything that the index says of them, and a digest
            of the shards' bytes outside the images: labels and other members.
        decoders: decoder builds that a patch store's pixels depend on; "" for an image store.
    """

    store: StoreKind
    packing: Packing
    epochs: int
    seed: int
    shuffle: bool
    shuffle_window: int
    num_streams: int
    block: int | None
    part_packs: int
    compression: str | None
    image: str
    sample: str | None
    label: str | None
    classes: dict[str, int] | None
    extras: tuple[str, ...]
    targets: dict[str, Target]
    max_pixels: int
    max_bytes: int
    truncated: Literal["skip", "keep"]
    on_bad: OnBad
    decode: str | None
    formats: tuple[str, ...]
    pages: Pages
    source: dict[str, Any]
    decoders: str

    def __post_init__(self) -> None:
        check_store(self.store)
        if callable(self.packing.convert):
            raise ValueError(
                f"convert is {self.packing.convert!r}, a function, which the recipe of a packed folder cannot hold; "
                "give 'scale', 'exact' or 'window:LOW:HIGH', or convert the files first"
            )
        for name, target in self.targets.items():
            if callable(decode := getattr(target, "decode", None)):
                raise ValueError(
                    f"targets[{name!r}] has decode={decode!r}, a function, which the recipe of a packed folder cannot "
                    "hold; give the target to the loader, not to the job: packs of store='images' keep all members of "
                    "shards, and those that extras= names of a data set"
                )
        if self.compression not in _COMPRESSIONS["patches"]:
            raise ValueError(f"compression is {self.compression!r}; it must be 'lz4', 'zstd', or None")
        if self.compression not in _COMPRESSIONS[self.store]:
            raise ValueError("compression is for store='patches'; encoded images do not get smaller: leave it out")

    def to_json(self) -> bytes:
        """Return the recipe as the text of a file."""
        return as_json({"schema": SCHEMA, **{f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}})

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Recipe:
        """Return the recipe of a file's values. Raises KeyError, TypeError or ValueError if they are not a recipe."""
        given = {field.name: _from_plain(values[field.name]) for field in dataclasses.fields(cls)}
        targets = {name: _from_plain(target) for name, target in values["targets"].items()}
        return cls(**given | {name: tuple(given[name]) for name in ("extras", "formats")} | {"targets": targets})


def changes_grids(packing: Packing) -> str | None:
    """Return what changes an image's grid or keep count, or the chosen images, from epoch to epoch by design, or None.

    Drawn drop rates do not count: one draw can serve every epoch.

    >>> changes_grids(Packing(patch_size=PatchSizes((8, 16))))
    'PatchSizes(sizes=(8, 16), weights=None, end_weights=None, images=None)'
    """
    if isinstance(packing.patch_size, PatchSizes):
        return repr(packing.patch_size)
    for policy in packing.size_policies:
        if policy.draws or isinstance(policy, ScheduledResolution):
            return repr(policy)
    if packing.frames is not None and packing.frames.draws:
        return repr(packing.frames)
    return repr(packing.token_drop) if isinstance(packing.token_drop, ScheduledDrop) else None


def difference(here: bytes, there: bytes) -> str:
    """Describe the first difference between the texts of two recipes."""
    ours, others = json.loads(here), json.loads(there)
    # The source first: what was decided from other images differs as well.
    for name in sorted([*ours, *(name for name in others if name not in ours)], key=lambda name: name != "source"):
        a, b = ours.get(name), others.get(name)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            key = next(key for key in [*a, *b] if a.get(key) != b.get(key))
            name, a, b = f"{name}.{key}", a.get(key), b.get(key)
        return f"{name} is {_short(a)} here and {_short(b)} there"
    return "their texts differ"


def as_json(values: Any) -> bytes:
    """Return a text that is equal for equal values."""
    return (json.dumps(values, indent=1) + "\n").encode()


def _short(value: Any, limit: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get("kind"), str):  # a class may be called "kind", too
        fields = {name: _from_plain(item) for name, item in value.items() if name != "kind"}
        return _KINDS[value["kind"]](**fields)
    if isinstance(value, list):
        return tuple(_from_plain(item) for item in value)
    return value
