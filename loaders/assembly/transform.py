"""A user's transform: its checks, and a warning where its draws do not come from the generator that it is given."""

from __future__ import annotations

import copy
import inspect
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from patchnpack.packer.checks import kind_of, shown

Transform = Callable[..., Any]  # of an image and a generator, or of these and targets

WATCHED = 32  # images whose transform is watched, by each loader in each process
_TAKE_PIL = ("torchvision", "timm")  # packages whose transforms take a PIL image and no generator

_log = logging.getLogger("patchnpack")


def check_transform(transform: object, has_targets: bool = False) -> None:
    """Check that `transform` is None or callable with two arguments, an image and a generator, or also with targets.

    A callable without a signature, as some written in C are, passes.

    Args:
        transform: what a user gave.
        has_targets: whether there are targets, which a transform of three arguments gets.

    Raises:
        ValueError: it is not callable, not with these positional arguments, or takes a PIL image as torchvision's do.
    """
    if transform is None:
        return
    wanted = "transform takes (image, rng), a uint8 array (height, width, C) and a numpy Generator"
    if isinstance(transform, tuple | list):
        raise ValueError(f"{wanted}; {shown(transform)} is a list: give patchnpack.augment.Compose of it")
    if isinstance(transform, type):
        raise ValueError(f"{wanted}; {transform.__name__} is a class: call it, for example {transform.__name__}()")
    if not callable(transform):
        raise ValueError(f"{wanted}; {transform!r} is not a function")
    module = getattr(transform, "__module__", None) or type(transform).__module__
    if any(str(name).partition(".")[0] in _TAKE_PIL for name in (module, type(transform).__module__)):
        name = getattr(transform, "__qualname__", type(transform).__qualname__)
        raise ValueError(
            f"{wanted}; {module}.{name} takes a PIL image and draws from global generators: give "
            "patchnpack.augment.from_pil(transform), without ToTensor, Normalize, Resize and crops, which Packing and "
            "the model replace"
        )
    try:
        signature = inspect.signature(_function(transform))
    except (TypeError, ValueError):  # some functions written in C have none
        return
    try:
        if not takes_targets(transform):
            signature.bind(None, None)
        elif not has_targets:
            signature.bind(None, None)  # the third argument has a default
        else:
            signature.bind(None, None, None)
    except TypeError as error:
        name = getattr(transform, "__name__", type(transform).__name__)
        if takes_targets(transform) and not has_targets:
            raise ValueError(
                f"{wanted}; {name}{signature} does not accept these arguments ({error}): a third argument is for "
                "targets, and there are none; give targets=, or a transform of two arguments"
            ) from error
        raise ValueError(
            f"{wanted}; {name}{signature} does not accept these arguments ({error}): for a function of a PIL image "
            "give patchnpack.augment.from_pil(f), for one of an array lambda image, rng: f(image)"
        ) from error


def takes_targets(transform: object) -> bool:
    """Return whether a transform has a third positional argument, for targets.

    >>> takes_targets(lambda image, rng: image), takes_targets(lambda image, rng, targets: (image, targets))
    (False, True)
    """
    if isinstance(transform, WatchedTransform):
        return transform.takes_targets
    try:
        parameters = inspect.signature(_function(transform)).parameters.values()
    except (TypeError, ValueError):
        return False
    return sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters) >= 3


def _function(transform: Any) -> Any:
    return transform.forward if isinstance(transform, torch.nn.Module) else transform


class WatchedTransform:
    """Calls a transform; warns once if its result depends on more than the image and the generator it is given.

    Such a transform, for example one that calls `random.random()`, makes the batches differ between runs, numbers of
    threads and resumes. The first `WATCHED` images are watched: where a global generator of Python, numpy or torch has
    moved during a call, the call is repeated with equal arguments. Only different pixels warn, since another thread may
    have moved the generator. A transform that leaves the global generators alone is called once per image.
    """

    _WARNING = (
        "the transform %s draws from a global generator (random, np.random or torch), so batches differ from run to "
        "run; draw from the rng that it is given, or wrap a function of PIL images in patchnpack.augment.from_pil"
    )

    def __init__(self, transform: Transform) -> None:
        self._transform, self._left = transform, WATCHED
        self.takes_targets = takes_targets(transform)
        self._warnings = [self._WARNING]  # popping an item is atomic, so that one thread of several warns

    def __call__(self, image: np.ndarray, rng: np.random.Generator, *targets: Any) -> Any:
        """Return the transformed image, with the transformed targets where these are given."""
        if self._left <= 0:
            return self._transform(image, rng, *targets)
        self._left -= 1
        before, same = _global_state(), copy.deepcopy((image, rng, *targets))
        out = self._transform(image, rng, *targets)
        if before != _global_state():
            out = copy.deepcopy(out)  # the transform may reuse its memory
            if not np.array_equal(_image_of(out), _image_of(self._transform(*same))):
                self._left = 0
                with suppress(IndexError):
                    _log.warning(self._warnings.pop(), _name(self._transform))
        return out


def watched(transform: Transform | None) -> Transform | None:
    """Return the transform with a warning for draws from global generators; None for None."""
    return None if transform is None else WatchedTransform(transform)


def _image_of(out: Any) -> np.ndarray:
    return np.asarray(out[0] if isinstance(out, tuple) else out)


def _global_state() -> tuple[Any, ...]:
    """What changes when one of the global generators draws."""
    kind, keys, *place = np.random.get_state(legacy=True)  # noqa: NPY002 - it is what users' transforms draw from
    return (
        random.getstate(),
        (kind, np.asarray(keys).tobytes(), *place),
        torch.default_generator.get_state().numpy().tobytes(),
    )


def _name(transform: object) -> str:
    return str(getattr(transform, "__qualname__", None) or kind_of(transform))
