"""A loader's state: its cursor, and a fingerprint of all that the order of packs depends on."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import metadata
from typing import Any

import numpy as np
import PIL
import simplejpeg
import xxhash

from patchnpack.loaders.index.table import Index
from patchnpack.loaders.order.order import Order
from patchnpack.loaders.remote.addresses import name_of
from patchnpack.packer.binpacking.pricing.prices import Prices
from patchnpack.packer.convert import name_of_convert


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the sequence of packs: the epoch, and how many of its packs have been used."""

    epoch: int
    position: int


def rows_digest(index: Index, usable: np.ndarray) -> str:
    """Return a digest of everything that the index says of the images, and of which rows are used.

    Args:
        index: n rows.
        usable: bool (n,).
    """
    digest, samples = xxhash.xxh3_128(), index.samples
    for column in (
        index.starts,
        index.offset,
        index.nbytes,
        index.width,
        index.height,
        index.orientation,
        index.digest,
        usable,
        *((samples.starts, samples.page, samples.frames) if samples is not None else ()),
    ):
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def fingerprint(order: Order, digest: str) -> dict[str, str]:
    """Return what must be equal for the same packs in the same order: names, and values as text.

    Batch size, ranks and threads are not part of it.

    Args:
        order: the order of packs.
        digest: of the rows; see `rows_digest`.
    """
    index, packing = order.index, order.packing
    return {
        "shards": str(len(index.shards)),
        "images": str(len(index)),
        "used": str(order.used),
        "index": digest,
        **({"sample": repr(index.samples.rule)} if index.samples is not None else {}),
        **{f"packing.{field.name}": repr(getattr(packing, field.name)) for field in fields(packing)},
        "packing.prices": _digest_of(packing.prices),
        "packing.convert": name_of_convert(packing.convert),
        "seed": str(order.seed),
        "shuffle": str(order.shuffle),
        "shuffle_window": str(order.shuffle_window),
        "num_streams": str(order.num_streams),
        "mixture": repr(order.mixed),
    }


def _digest_of(prices: tuple[Prices, ...] | None) -> str:
    """Return a short text that is equal for equal prices."""
    return "None" if prices is None else xxhash.xxh3_128_hexdigest(repr(prices).encode())


def _difference(name: str, saved: str | None, current: str | None) -> str:
    if name == "index":
        return (
            "the same number of shards, images and used samples, but other images or another order: bytes, sizes or "
            "offsets in the shards differ"
        )
    counts = {
        "shards": "{} shards",
        "images": "{} images in its index",
        "used": "{} samples used of those in its index",
    }
    if name not in counts:
        return f"{name} = {saved}, this loader has {current}"
    why = (
        "; where=, decode=, pages=, bad headers and the limits and on_bad of ErrorPolicy decide which are used"
        if name == "used"
        else ""
    )
    return f"{counts[name].format(saved)}, this loader has {current}{why}"


def _source(order: Order) -> str:
    """Describe the shards without secrets; they may lie elsewhere now, so they are not part of the fingerprint."""
    shards = order.index.shards
    first, last = name_of(shards[0]), name_of(shards[-1])
    return f"over {first}" if len(shards) == 1 else f"over {len(shards)} shards, {first} to {last}"


def decoders() -> str:
    """Return the builds that decoded pixels depend on, to the last bit."""
    return f"simplejpeg {simplejpeg.__version__}, imagecodecs {_imagecodecs()}, Pillow {PIL.__version__}"


@functools.cache
def _imagecodecs() -> str:
    return metadata.version("imagecodecs")  # without importing it


def to_dict(cursor: Cursor, order: Order, current: dict[str, str]) -> dict[str, Any]:
    """Return the state as a small dict of plain values, identical on every rank.

    Args:
        cursor: where training stands.
        order: the order of packs.
        current: its fingerprint.
    """
    return {
        "epoch": cursor.epoch,
        "position": cursor.position,
        "block": order.block,
        "decoders": decoders(),
        "source": _source(order),
        "fingerprint": current,
    }


def from_dict(state: Mapping[str, Any], current: Mapping[str, str]) -> tuple[Cursor, int]:
    """Return the cursor of a state and the block of its order.

    Args:
        state: what `to_dict` returned.
        current: the fingerprint of the loader that resumes.

    Raises:
        ValueError: `state` is not a state, or it was saved with another index, packing or order; the message names the
            first difference.
    """
    try:
        epoch, position, block = (int(state[name]) for name in ("epoch", "position", "block"))
        saved: dict[str, str] = dict(state["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"this is not the state of a loader ({type(error).__name__}: {error}); give what state_dict() returned"
        ) from None
    if epoch < 0 or position < 0 or block < 1:
        raise ValueError(f"the state has epoch {epoch}, position {position}, block {block}; it is damaged")
    for name in [*current, *(name for name in saved if name not in current)]:
        if current.get(name) != saved.get(name):
            raise ValueError(
                f"the state was saved with {_difference(name, saved.get(name), current.get(name))}: the packs would "
                f"not be the same; make the loader as it was then, {state.get('source', 'over the same shards')}, or "
                "start again without the state"
            )
    if (builds := state.get("decoders")) != decoders():
        warnings.warn(
            f"the state was saved with {builds}, this is {decoders()}: the order is the same, but pixels may differ",
            stacklevel=4,
        )
    return Cursor(epoch, position), block
