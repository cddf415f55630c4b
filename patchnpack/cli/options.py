"""Command-line flags that are derived from the library's configuration classes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_args, get_type_hints

import typer

from patchnpack.models import NaViTConfig
from patchnpack.packer import (
    BetaDrop,
    ConstantDrop,
    DropToTokens,
    FitTokens,
    Native,
    NoDrop,
    Packing,
    PatchSizes,
    RandomResizedCrop,
    ResolutionDrop,
    SampleSide,
    ScheduledDrop,
    ScheduledResolution,
    Square,
)
from patchnpack.packer.binpacking.algorithms import Algorithm
from patchnpack.packer.policies.resolution import Resolution
from patchnpack.packer.policies.token_drop import TokenDrop
from patchnpack.trainer import TrainConfig

_RESOLUTIONS = (
    "native, native:crop, native:resize, fit:TOKENS, naflex:TOKENS, side:LOW:HIGH, side:LOW:HIGH:uniform, crop, "
    "crop:TOKENS or square:PIXELS"
)
_TOKEN_DROPS = "a rate, beta:MEAN:MAX, resolution:LOW:HIGH:STD or to:TOKENS"


def parse_resolution(text: str) -> Resolution:
    """The resolution policy that `text` names.

    "native" or "native:EDGE" (pad, crop, resize), "fit:TOKENS" (shrunk to at most so many), "naflex:TOKENS" (enlarged
    as well), "side:LOW:HIGH" with or without ":uniform" (`SampleSide`), "crop" or "crop:TOKENS" (`RandomResizedCrop`),
    "square:PIXELS"; or a curriculum, "0=fit:64,1000000=fit:256".

    >>> parse_resolution("fit:144")
    FitTokens(max_tokens=144, upsample=False, edge='resize')
    """
    if "=" in text:
        stages = [stage.partition("=") for stage in text.split(",")]
        if not all(start.isdecimal() for start, _, _ in stages):
            raise ValueError(f"resolution is {text!r}; each stage must be IMAGES=POLICY: 0=fit:64,1000000=fit:256")
        return ScheduledResolution(tuple((int(start), parse_resolution(policy)) for start, _, policy in stages))
    name, *values = text.split(":")
    if name == "native" and len(values) < 2:
        return Native(edge=values[0] if values else "pad")  # type: ignore[arg-type]  # Native checks it
    dist = "truncnormal"
    if name == "side" and len(values) == 3:
        dist = values.pop()
    kinds: dict[str, tuple[Callable[..., Resolution], tuple[int, ...]]] = {
        "fit": (FitTokens, (1,)),
        "naflex": (functools.partial(FitTokens, upsample=True), (1,)),
        "side": (lambda low, high: SampleSide(low=low, high=high, dist=dist), (2,)),  # type: ignore[arg-type]
        "crop": (lambda most=None: RandomResizedCrop(max_tokens=most), (0, 1)),
        "square": (Square, (1,)),
    }
    make, counts = kinds.get(name, (Square, ()))
    if len(values) not in counts or not all(value.isdecimal() for value in values):
        raise ValueError(f"resolution is {text!r}; it must be {_RESOLUTIONS}")
    return make(*map(int, values))


def parse_token_drop(text: str) -> TokenDrop:
    """The token drop that `text` names.

    A rate (0 is none), "beta:MEAN:MAX", "resolution:LOW:HIGH:STD" or "to:TOKENS"; with "@FIRST:LAST:MIDPOINT:TAU", the
    same on a schedule (`ScheduledDrop`).

    >>> parse_token_drop("beta:0.5:0.8")
    BetaDrop(mean=0.5, max=0.8)
    """
    text, at, schedule = text.partition("@")
    name, *values = text.split(":") if ":" in text else ("constant", text)
    kinds: dict[str, tuple[Callable[..., TokenDrop], type[float], int]] = {
        "constant": (lambda rate: ConstantDrop(rate) if rate else NoDrop(), float, 1),
        "beta": (BetaDrop, float, 2),
        "resolution": (ResolutionDrop, float, 3),
        "to": (DropToTokens, int, 1),
    }
    try:
        make, number, count = kinds[name]
        numbers = [number(value) for value in values]
        factors = [float(value) for value in schedule.split(":")] if at else []
        if len(numbers) != count or len(factors) not in (0, 4):
            raise ValueError
    except (KeyError, ValueError):
        raise ValueError(
            f"token_drop is {text + at + schedule!r}; it must be {_TOKEN_DROPS}, and may end in "
            "@FIRST:LAST:MIDPOINT:TAU"
        ) from None
    drop = make(*numbers)
    if not factors:
        return drop
    start, end, midpoint, tau = factors
    return ScheduledDrop(drop=drop, start=start, end=end, midpoint=midpoint, tau=tau)


def parse_patch_size(text: str) -> int | PatchSizes:
    """A patch size, or several of which each block of packs draws one.

    >>> parse_patch_size("16"), parse_patch_size("8,16,32").sizes
    (16, (8, 16, 32))
    """
    sizes = text.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise ValueError(f"patch_size is {text!r}; it must be a number of pixels, or several: 8,16,32")
    return int(text) if len(sizes) == 1 else PatchSizes(tuple(map(int, sizes)))


def parse_storage_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options of remote stores out of KEY=VALUE; a dot in KEY is an option within one, true and false are no texts.

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
        if not equals or not all([*path, last]) or not isinstance(inner, dict) or last in inner:
            raise ValueError(
                f"storage_options has {key!r}{', twice or within itself' if equals and key else ''}; each must be "
                "KEY=VALUE, once: anon=true, or client_kwargs.region_name=eu-west-1 for one within another"
            )
        inner[last] = {"true": True, "false": False}.get(value.lower(), value)
    return options


def whole_flag(help: str) -> Any:
    """A flag that takes a whole number; what typer itself says of another text does not quote it."""
    return typer.Option(help=help, metavar="INTEGER", parser=functools.partial(_parse, int, "whole number"))


def _number_flag(help: str) -> Any:
    return typer.Option(help=help, metavar="FLOAT", parser=functools.partial(_parse, float, "number"))


def _parse(kind: Callable[[str], Any], name: str, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no {name}") from None


def takes(
    cls: type[Any],
    parameter: str,
    helps: Mapping[str, str],
    parsed: Mapping[str, tuple[Any, Callable[[Any], Any], str]] | None = None,
    make: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replaces a command's `parameter`, a `cls`, by one flag a field; `cls` itself checks the values.

    Args:
        cls: a dataclass.
        parameter: the command's keyword-only parameter that is given the `cls`.
        helps: the fields that become flags, and what each is for; defaults and types are the class's own.
        parsed: fields whose flag is of another type: its default, how it becomes the field's value, and its help.
        make: what is called with the values instead of `cls`.
    """
    hints, parsed = get_type_hints(cls), parsed or {}
    flags = []
    for field in dataclasses.fields(cls):
        if field.name in parsed:
            default, _, help = parsed[field.name]
            flags.append(_flag(field.name, type(default), default, help))
        elif field.name in helps:
            kind = hints[field.name] if hints[field.name] in (bool, int, float, int | None, float | None) else str
            flags.append(_flag(field.name, kind, field.default, helps[field.name]))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapped(**arguments: Any) -> None:
            values = {flag.name: arguments.pop(flag.name) for flag in flags}
            for name, (_, parse, _) in parsed.items():
                values[name] = parse(values[name])
            command(**arguments, **{parameter: (make or cls)(**values)})

        signature = inspect.signature(command, eval_str=True)
        others = [p for p in signature.parameters.values() if p.name != parameter]
        wrapped.__signature__ = signature.replace(parameters=[*others, *flags])  # type: ignore[attr-defined]
        return wrapped

    return decorate


def _flag(name: str, kind: Any, default: Any, help: str) -> inspect.Parameter:
    makes = {int: whole_flag, int | None: whole_flag, float: _number_flag, float | None: _number_flag}
    option = makes[kind](help) if kind in makes else typer.Option(help=help)
    annotation = Annotated[kind, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


takes_packing = takes(
    Packing,
    "packing",
    {
        "seq_len": "Token slots in a pack.",
        "oversize": "Images of more than seq-len tokens: shrink, drop, skip or error.",
        "algorithm": f"{', '.join(get_args(Algorithm))}.",
        "lookahead": "Waiting images that the packer may choose from.",
        "fill": "Leftover slots: undrop gives them back to images whose tokens were dropped; or none, trim, rescale.",
        "max_trim": "Share of an image's tokens that trim drops at most.",
        "max_scale": "How much rescale changes an image's sides at most.",
        "balance": "Packs of a window that are put in shares of like attention cost; 0 is off.",
        "max_images": "Images in a pack at most.",
        "grid_multiple": "Both sides of a grid are multiples of this.",
        "image_mode": "RGB, L or RGBA.",
        "interpolation": "Filter that resizes images, by PIL's name.",
    },
    {
        "patch_size": ("16", parse_patch_size, "Side of a patch in pixels, or several: 8,16,32."),
        "resolution": ("native", parse_resolution, f"{_RESOLUTIONS}; a curriculum: 0=fit:64,1000000=fit:256."),
        "token_drop": (
            "0",
            parse_token_drop,
            f"Share of each image's tokens that is dropped: {_TOKEN_DROPS}; @FIRST:LAST:MIDPOINT:TAU is a schedule.",
        ),
    },
)

takes_evaluation = takes(
    Packing,
    "packing",
    {
        "seq_len": "Token slots in a pack.",
        "oversize": "Images of more than seq-len tokens: shrink, drop, skip or error.",
        "max_images": "Images in a pack at most.",
        "grid_multiple": "Both sides of a grid are multiples of this.",
        "image_mode": "RGB, L or RGBA.",
        "interpolation": "Filter that resizes images, by PIL's name.",
    },
    {
        "patch_size": (
            "",
            lambda text: parse_patch_size(text) if text else None,
            "Side of a patch in pixels; by default the model's.",
        ),
        "resolution": ("native", parse_resolution, f"{_RESOLUTIONS}."),
    },
    make=dict,
)

takes_model = takes(
    NaViTConfig,
    "model",
    {
        "width": "Features of a token.",
        "depth": "Transformer blocks.",
        "heads": "Attention heads.",
        "drop_path": "Chance that an image skips a branch of the last block.",
    },
    make=dict,
)

takes_training = takes(
    TrainConfig,
    "training",
    {
        "epochs": "Budget in epochs; give this, steps or minutes.",
        "steps": "Budget in batches.",
        "minutes": "Budget in minutes, over all parts of a run.",
        "accumulate": "Batches of a step.",
        "lr": "Peak learning rate.",
        "schedule": "cosine or rsqrt.",
        "warmup": "Share of the budget in which the learning rate grows.",
        "cooldown": "Share of the budget at its end in which it falls to 0, of rsqrt.",
        "layer_decay": "Learning rate of a block over that of the next one.",
        "weight_decay": "Of AdamW, on matrices.",
        "clip": "Largest norm of the gradient.",
        "ema": "Decay of a moving average of the weights; 0 is none.",
        "loss": "softmax, sigmoid, or auto: softmax for classes.",
        "label_smoothing": "Share of the target spread over all classes.",
        "mixup": "Alpha of MixUp; 0 is off.",
        "cutmix": "Alpha of CutMix; 0 is off.",
        "temperature": "Of distillation.",
        "task_weight": "Of the labels' loss in distillation.",
        "eval_every": "Epochs between evaluations.",
        "save_every": "Steps between further checkpoints.",
        "save_minutes": "Minutes between further checkpoints.",
        "keep": "Newest checkpoints that are kept.",
        "log_steps": "Steps between scalars.",
        "tensorboard": "Write scalars for TensorBoard into OUT.",
        "seed": "Of the initial weights, the order and every draw.",
        "device": "auto, cpu or cuda.",
        "precision": "auto, float32 or bfloat16.",
    },
)
