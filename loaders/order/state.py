"""A loader's state: where in which epoch it stands, and a fingerprint of all that the order of packs depends on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import PIL
import simplejpeg

from patchnpack.loaders.order.order import Order
from patchnpack.loaders.remote.download import name_of


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a loader stands: packs of the epoch that are done."""

    epoch: int
    position: int


def fingerprint(order: Order) -> dict[str, str]:
    """What must be equal for the same packs to come in the same order: names, and values as text.

    Neither batch size nor ranks are part of it, nor how many threads there are.
    """
    index, packing = order.index, order.packing
    return {
        "shards": str(len(index.shards)),
        "images": str(len(index)),
        "used": str(order.used),
        "index": order.rows_digest,
        **{f"packing.{field.name}": repr(getattr(packing, field.name)) for field in fields(packing)},
        "seed": str(order.seed),
        "shuffle": str(order.shuffle),
        "shuffle_window": str(order.shuffle_window),
        "num_streams": str(order.num_streams),
        "mixture": repr(order.mixed),
        **order.details,
    }


def _difference(name: str, theirs: str | None, ours: str | None) -> str:
    if name == "index":
        return (
            "as many shards and images, and as many of them used, but other ones or in another order, so that not all "
            "bytes, sizes and places in the shards are the same"
        )
    what = {"shards": "{} shards", "images": "{} images in its index", "used": "{} images used of those in its index"}
    if name not in what:
        return f"{name} = {theirs}, this loader has {ours}"
    why = "; where=, decode=, bad headers and the limits of ErrorPolicy decide which are used" if name == "used" else ""
    return f"{what[name].format(theirs)}, this loader has {ours}{why}"


def _source(order: Order) -> str:
    """The shards in words, without secrets: they may lie elsewhere now, so they are no part of the fingerprint."""
    shards = order.index.shards
    first, last = name_of(shards[0]), name_of(shards[-1])
    return f"over {first}" if len(shards) == 1 else f"over {len(shards)} shards, {first} to {last}"


def decoders() -> str:
    """The builds that pixels depend on, to the last bit."""
    return f"simplejpeg {simplejpeg.__version__}, Pillow {PIL.__version__}"


def to_dict(place: Cursor, order: Order) -> dict[str, Any]:
    """The state as a small dict of plain values, identical on every rank."""
    return {
        "epoch": place.epoch,
        "position": place.position,
        "block": order.block,
        "decoders": decoders(),
        "source": _source(order),
        "fingerprint": fingerprint(order),
    }


def from_dict(state: Mapping[str, Any], order: Order) -> tuple[Cursor, int]:
    """The place that a state tells and the block of its order, if `order` is else the one that it was taken of.

    Raises:
        ValueError: it is no state, or one of another index, packing or order; the first difference is named.
    """
    try:
        epoch, position, block = (int(state[name]) for name in ("epoch", "position", "block"))
        theirs: dict[str, str] = dict(state["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"this is no state of a loader ({type(error).__name__}: {error}); give what state_dict() returned"
        ) from None
    if epoch < 0 or position < 0 or block < 1:
        raise ValueError(f"the state has epoch {epoch}, position {position}, block {block}; it has been damaged")
    ours = fingerprint(order)
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"the state was saved with {_difference(name, theirs.get(name), ours.get(name))}: the packs would not "
                f"be the same; make the loader as it was then, {state.get('source', 'over the same shards')}, or start "
                "anew without the state"
            )
    if (saved := state.get("decoders")) != decoders():
        warnings.warn(
            f"the state was saved with {saved}, this is {decoders()}: the order is the same, but pixels may differ",
            stacklevel=3,
        )
    return Cursor(epoch, position), block
