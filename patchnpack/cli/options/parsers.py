"""Parsers: the text of a flag becomes a policy, a patch size or storage options."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the functions import the packer, and with it numba, when they need it
    from patchnpack.packer import Frames, PatchSizes, Views
    from patchnpack.packer.policies.resolution import Resolution
    from patchnpack.packer.policies.token_drop import TokenDrop

RESOLUTIONS = (
    "native, native:crop, native:resize, fit:TOKENS, naflex:TOKENS, side:LOW:HIGH, side:LOW:HIGH:uniform, crop, "
    "crop:TOKENS, crop:TOKENS:LOW:HIGH or square:PIXELS"
)
FRAMES = "COUNT, COUNT:uniform, COUNT:random, COUNT:first or COUNT:stride:N"
TOKEN_DROPS = "a rate, beta:MEAN:MAX, resolution:LOW:HIGH:STD, complexity:LOW:HIGH[:SIMPLE:DETAILED] or to:TOKENS"


def parse_convert(text: str | None) -> str | Callable[..., Any] | None:
    """Parse the value of --convert: a function's name becomes the function, and `Packing` checks everything else."""
    return parse_function(text, "--convert") if text and names_function(text) else text or None


def parse_decode(text: str | None) -> Callable[..., Any] | None:
    """Parse the value of --decode, the name of a function; "" is none."""
    return parse_function(text, "--decode") if text else None


def names_function(text: str) -> bool:
    """Whether the value of --convert or --decode names a function.

    >>> names_function("window:0:255"), names_function("my_formats:decode")
    (False, True)
    """
    return text not in ("scale", "exact") and not text.startswith("window:")


def parse_function(text: str, flag: str) -> Callable[..., Any]:
    """Import a function that is given as MODULE:FUNCTION; the module may lie in the current folder.

    Raises:
        ValueError: the text is of another form, or there is no such module or function.

    >>> parse_function("math:sqrt", "--decode")(9.0)
    3.0
    """
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{flag} is {text!r}; give MODULE:FUNCTION, such as my_formats:decode")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{flag} is {text!r}, which cannot be imported ({error}); check module and function"
        ) from error
    if not callable(found):
        raise ValueError(f"{flag} is {text!r}, which is no function")
    return found  # type: ignore[no-any-return]


def parse_resolution(text: str, flag: str = "--resolution") -> Resolution:
    """Parse the value of a flag that names a resolution policy.

    Values are "native" or "native:EDGE" (pad, crop or resize), "fit:TOKENS" (shrink to at most TOKENS), "naflex:TOKENS"
    (shrink or enlarge), "side:LOW:HIGH" with an optional ":uniform" (`SampleSide`), "crop" or "crop:TOKENS"
    (`RandomResizedCrop`) with an optional ":LOW:HIGH", the crop's share of the area, "square:PIXELS", or a curriculum
    such as "0=fit:64,1000000=fit:256".

    Args:
        text: the value.
        flag: the flag, for error messages.

    >>> parse_resolution("fit:144")
    FitTokens(max_tokens=144, upsample=False, edge='resize')
    """
    try:
        return _resolution(text, flag)
    except ValueError as error:
        raise ValueError(error if str(error).startswith(flag) else f"{flag} is {text!r}: {error}") from None


def _resolution(text: str, flag: str) -> Resolution:
    from patchnpack.packer import FitTokens, Native, RandomResizedCrop, SampleSide, ScheduledResolution, Square

    if "=" in text:
        stages = [stage.partition("=") for stage in text.split(",")]
        if not all(start.isdecimal() for start, _, _ in stages):
            raise ValueError(f"{flag} is {text!r}; each stage must be IMAGES=POLICY, as in 0=fit:64,1000000=fit:256")
        return ScheduledResolution(tuple((int(start), _resolution(policy, flag)) for start, _, policy in stages))
    name, *values = text.split(":")
    if name == "native" and len(values) < 2:
        return Native(edge=values[0] if values else "pad")  # type: ignore[arg-type]  # Native checks it
    dist = "truncnormal"
    if name == "side" and len(values) == 3:
        dist = values.pop()
    crop: Callable[..., Resolution] = RandomResizedCrop
    if name == "crop" and len(values) == 3 and all(value.replace(".", "", 1).isdecimal() for value in values[1:]):
        crop = functools.partial(RandomResizedCrop, scale=(float(values[1]), float(values[2])))
        values = values[:1]
    kinds: dict[str, tuple[Callable[..., Resolution], tuple[int, ...]]] = {
        "fit": (FitTokens, (1,)),
        "naflex": (functools.partial(FitTokens, upsample=True), (1,)),
        "side": (lambda low, high: SampleSide(low=low, high=high, dist=dist), (2,)),  # type: ignore[arg-type]
        "crop": (lambda max_tokens=None: crop(max_tokens=max_tokens), (0, 1)),
        "square": (Square, (1,)),
    }
    make, counts = kinds.get(name, (Square, ()))
    if len(values) not in counts or not all(value.isdecimal() for value in values):
        meant = f"; for squares of {text} pixels give square:{text}" if text.isdecimal() else ""
        raise ValueError(f"{flag} is {text!r}; it must be {RESOLUTIONS}{meant}")
    return make(*map(int, values))


def parse_frames(text: str) -> Frames | None:
    """Parse the value of --frames: how many images of each sample are used, which, and what fewer mean.

    Values are a number, optionally followed by ":uniform", ":random", ":first" or ":stride:N", and that by ":keep",
    ":repeat" or ":skip". "" uses all images.

    >>> parse_frames("8:stride:4:repeat")
    Frames(count=8, how='stride:4', short='repeat')
    """
    from patchnpack.packer import Frames

    if not text:
        return None
    count, *rest = text.split(":")
    short = rest.pop() if rest and rest[-1] in ("keep", "repeat", "skip") else "keep"
    if not count.isdecimal():
        raise ValueError(f"--frames is {text!r}; it must be {FRAMES}, optionally followed by :keep, :repeat or :skip")
    try:
        return Frames(int(count), ":".join(rest) or "uniform", short)  # type: ignore[arg-type]  # Frames checks it
    except ValueError as error:
        raise ValueError(f"--frames is {text!r}: {error}") from None


def parse_views(text: str) -> Views | None:
    """Parse the value of --views: groups of a number of views and the resolution policy that sizes them.

    >>> views = parse_views("2=crop:196:0.25:1,8=crop:36:0.05:0.25")
    >>> views.count, views.groups[1][1].scale
    (10, (0.05, 0.25))
    """
    from patchnpack.packer import Views

    if not text:
        return None
    groups = [group.partition("=") for group in text.split(",")]
    if not all(count.isdecimal() and policy for count, _, policy in groups):
        raise ValueError(f"--views is {text!r}; each group must be COUNT=POLICY, as in 2=crop:196,8=crop:36")
    try:
        return Views(*((int(count), parse_resolution(policy, "--views")) for count, _, policy in groups))
    except ValueError as error:
        raise ValueError(error if str(error).startswith("--views") else f"--views is {text!r}: {error}") from None


def parse_token_drop(text: str) -> TokenDrop:
    """Parse the value of --token-drop.

    Values are a rate (0 drops nothing), "beta:MEAN:MAX", "resolution:LOW:HIGH:STD", "complexity:LOW:HIGH" with
    optional ":SIMPLE:DETAILED" (encoded bytes per pixel), or "to:TOKENS". A suffix "@FIRST:LAST:MIDPOINT:TAU" puts the
    drop on a schedule (`ScheduledDrop`).

    >>> parse_token_drop("beta:0.5:0.8")
    BetaDrop(mean=0.5, max=0.8)
    """
    from patchnpack.packer import (
        BetaDrop,
        ComplexityDrop,
        ConstantDrop,
        DropToTokens,
        NoDrop,
        ResolutionDrop,
        ScheduledDrop,
    )

    text, at, schedule = text.partition("@")
    name, *values = text.split(":") if ":" in text else ("constant", text)
    kinds: dict[str, tuple[Callable[..., TokenDrop], type[float], tuple[int, ...]]] = {
        "constant": (lambda rate: ConstantDrop(rate) if rate else NoDrop(), float, (1,)),
        "beta": (BetaDrop, float, (2,)),
        "resolution": (ResolutionDrop, float, (3,)),
        "complexity": (ComplexityDrop, float, (2, 4)),
        "to": (DropToTokens, int, (1,)),
    }
    try:
        make, number, counts = kinds[name]
        numbers = [number(value) for value in values]
        factors = [float(value) for value in schedule.split(":")] if at else []
        if len(numbers) not in counts or len(factors) not in (0, 4):
            raise ValueError
    except (KeyError, ValueError):
        raise ValueError(
            f"--token-drop is {text + at + schedule!r}; it must be {TOKEN_DROPS}, optionally followed by "
            "@FIRST:LAST:MIDPOINT:TAU"
        ) from None
    try:
        drop = make(*numbers)
        if not factors:
            return drop
        start, end, midpoint, tau = factors
        return ScheduledDrop(drop=drop, start=start, end=end, midpoint=midpoint, tau=tau)
    except ValueError as error:
        raise ValueError(f"--token-drop is {text + at + schedule!r}: {error}") from None


def parse_patch_size(text: str, flag: str = "--patch-size") -> int | PatchSizes:
    """Parse one patch size, or several of which each block of packs draws one.

    Args:
        text: the value of a flag.
        flag: the flag, for error messages.

    >>> parse_patch_size("16"), parse_patch_size("8,16,32").sizes
    (16, (8, 16, 32))
    """
    from patchnpack.packer import PatchSizes

    sizes = text.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise ValueError(f"{flag} is {text!r}; it must be a number of pixels, or several such as 8,16,32")
    if len(sizes) == 1:
        return int(text)
    try:
        return PatchSizes(tuple(map(int, sizes)))
    except ValueError as error:
        raise ValueError(f"{flag} is {text!r}: {error}") from None


def parse_storage_options(texts: Sequence[str]) -> dict[str, Any]:
    """Parse KEY=VALUE options for remote shards; a dot in KEY nests, and true and false become booleans.

    >>> parse_storage_options(["anon=true", "client_kwargs.region_name=eu-west-1"])
    {'anon': True, 'client_kwargs': {'region_name': 'eu-west-1'}}
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        *path, last = key.split(".")
        inner: Any = options
        for name in path:
            inner = inner.setdefault(name, {}) if isinstance(inner, dict) else inner
        malformed = not equals or not all([*path, last])
        if malformed or not isinstance(inner, dict) or last in inner:
            raise ValueError(
                f"--storage-options has {key!r}{'' if malformed else ' twice, or inside another option'}; each must be "
                "KEY=VALUE, once, such as anon=true, or client_kwargs.region_name=eu-west-1 for a nested option"
            )
        inner[last] = {"true": True, "false": False}.get(value.lower(), value)
    return options
