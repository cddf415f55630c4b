"""The recipe of pre-packed data: everything that its bytes depend on, and what its files are called."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from patchnpack.loaders.shards.reader import PACKED_FOLDER_FILES
from patchnpack.packer import Packing, PatchSizes, ScheduledDrop, ScheduledResolution
from patchnpack.packer.config import RESOLUTIONS, TOKEN_DROPS

StoreKind = Literal["images", "patches"]

SCHEMA = 1  # of the folder and of all files in it
RECIPE, MANIFEST = PACKED_FOLDER_FILES
ROWS = "rows.arrow"
PARTS, MARKERS, PLANS = "parts", "done", "plans"  # folders
_COMPRESSIONS: dict[StoreKind, tuple[str | None, ...]] = {"images": (None,), "patches": (None, "lz4", "zstd")}
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (*RESOLUTIONS, *TOKEN_DROPS, PatchSizes, Packing)}


def check_store(kind: str) -> None:
    """Raise ValueError if there is no store of this kind."""
    if kind not in get_args(StoreKind):
        raise ValueError(f"store is {kind!r}; it must be 'images' or 'patches'")


def unit_name(epoch: int, stream: int, number: int) -> str:
    """The name, without ending, of part `number` of one stream of one epoch.

    >>> unit_name(0, 2, 31)
    'e0000-s002-00000031'
    """
    return f"e{epoch:04d}-s{stream:03d}-{number:08d}"


def plan_name(epoch: int, stream: int) -> str:
    """The file that holds the plan of one stream of one epoch."""
    return f"{PLANS}/e{epoch:04d}-s{stream:03d}.arrow"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides every byte of pre-packed data. Two tasks that disagree about it do not write into one folder.

    Attributes:
        store: "images", encoded bytes in the order of their packs, or "patches", packs as they are trained on.
        packing: what a sequence looks like; its algorithm is decided.
        epochs: plans, one an epoch.
        seed, shuffle, shuffle_window, num_streams: of the order that is planned, as for `PackedImageLoader`.
        block: packs of one patch size in a row, with `PatchSizes`; None without.
        part_packs: packs of a file.
        compression: of a patch store's files: None, "lz4" or "zstd".
        image: the extensions that are images.
        label: what labels are made of, None or a text.
        classes: from name to index, None where labels are numbers.
        extras: the members that are handed out.
        max_pixels, max_bytes, truncated: as for `ErrorPolicy`; they decide which images are bad.
        source: the shards' names, their images, and a digest of all that the index says of them.
        decoders: the builds that a patch store's pixels depend on; "" for an image store.
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
    label: str | None
    classes: dict[str, int] | None
    extras: tuple[str, ...]
    max_pixels: int
    max_bytes: int
    truncated: Literal["skip", "keep"]
    source: dict[str, Any]
    decoders: str

    def __post_init__(self) -> None:
        check_store(self.store)
        if self.compression not in _COMPRESSIONS["patches"]:
            raise ValueError(f"compression is {self.compression!r}; it must be 'lz4', 'zstd', or None")
        if self.compression not in _COMPRESSIONS[self.store]:
            raise ValueError("compression is for store='patches'; encoded images do not become smaller: leave it out")

    def to_json(self) -> bytes:
        """The recipe as the text of a file."""
        return as_json({"schema": SCHEMA, **{f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}})

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Recipe:
        """The recipe that a file holds. Raises KeyError, TypeError or ValueError where it holds none."""
        given = {field.name: _made(values[field.name]) for field in dataclasses.fields(cls)}
        return cls(**given | {"extras": tuple(given["extras"])})


def changes_grids(packing: Packing) -> str | None:
    """What makes an image's grid or keep count another one in each epoch by design; None where nothing does.

    Drawn drop rates do not count: one draw may serve every epoch.

    >>> changes_grids(Packing(patch_size=PatchSizes((8, 16))))
    'PatchSizes(sizes=(8, 16), weights=None, end_weights=None, images=None)'
    """
    if isinstance(packing.patch_size, PatchSizes):
        return repr(packing.patch_size)
    if packing.resolution.draws or isinstance(packing.resolution, ScheduledResolution):
        return repr(packing.resolution)
    return repr(packing.token_drop) if isinstance(packing.token_drop, ScheduledDrop) else None


def difference(ours: bytes, theirs: bytes) -> str:
    """The first thing in which two recipes' texts differ, in words."""
    mine, other = json.loads(ours), json.loads(theirs)
    for name in [*mine, *(name for name in other if name not in mine)]:
        a, b = mine.get(name), other.get(name)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            part = next(key for key in [*a, *b] if a.get(key) != b.get(key))
            name, a, b = f"{name}.{part}", a.get(part), b.get(part)
        return f"{name} is {_short(a)} here and {_short(b)} there"
    return "their texts differ"


def as_json(values: Any) -> bytes:
    """A text that is the same for equal values."""
    return (json.dumps(values, indent=1) + "\n").encode()


def _short(value: Any, most: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value


def _made(value: Any) -> Any:
    if isinstance(value, dict) and "kind" in value:
        fields = {name: _made(part) for name, part in value.items() if name != "kind"}
        return _KINDS[value["kind"]](**fields)
    if isinstance(value, list):
        return tuple(_made(part) for part in value)
    return value
