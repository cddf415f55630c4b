"""Command-line flags that derive from the configuration classes of the library."""

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


def parse_resolution(text: str, flag: str = "--resolution") -> Resolution:
    """Parse the value of a flag that names a resolution policy.

    Values are "native" or "native:EDGE" (pad, crop or resize), "fit:TOKENS" (shrink to at most TOKENS), "naflex:TOKENS"
    (shrink or enlarge), "side:LOW:HIGH" with an optional ":uniform" (`SampleSide`), "crop" or "crop:TOKENS"
    (`RandomResizedCrop`), "square:PIXELS", or a curriculum such as "0=fit:64,1000000=fit:256".

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
    kinds: dict[str, tuple[Callable[..., Resolution], tuple[int, ...]]] = {
        "fit": (FitTokens, (1,)),
        "naflex": (functools.partial(FitTokens, upsample=True), (1,)),
        "side": (lambda low, high: SampleSide(low=low, high=high, dist=dist), (2,)),  # type: ignore[arg-type]
        "crop": (lambda max_tokens=None: RandomResizedCrop(max_tokens=max_tokens), (0, 1)),
        "square": (Square, (1,)),
    }
    make, counts = kinds.get(name, (Square, ()))
    if len(values) not in counts or not all(value.isdecimal() for value in values):
        raise ValueError(f"{flag} is {text!r}; it must be {_RESOLUTIONS}")
    return make(*map(int, values))


def parse_token_drop(text: str) -> TokenDrop:
    """Parse the value of --token-drop.

    Values are a rate (0 drops nothing), "beta:MEAN:MAX", "resolution:LOW:HIGH:STD" or "to:TOKENS". A suffix
    "@FIRST:LAST:MIDPOINT:TAU" puts the drop on a schedule (`ScheduledDrop`).

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
            f"--token-drop is {text + at + schedule!r}; it must be {_TOKEN_DROPS}, optionally followed by "
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
    sizes = text.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise ValueError(f"{flag} is {text!r}; it must be a number of pixels, or several such as 8,16,32")
    return int(text) if len(sizes) == 1 else PatchSizes(tuple(map(int, sizes)))


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


def whole_flag(help: str) -> Any:
    """An integer flag whose error message quotes the wrong value, which typer's own message does not."""
    return typer.Option(help=help, metavar="INTEGER", parser=functools.partial(_parse, int, "an integer"))


def _number_flag(help: str) -> Any:
    return typer.Option(help=help, metavar="FLOAT", parser=functools.partial(_parse, float, "a number"))


def _parse(kind: Callable[[str], Any], name: str, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not {name}") from None


def takes(
    cls: type[Any],
    parameter: str,
    helps: Mapping[str, str],
    parsed: Mapping[str, tuple[Any, Callable[[Any], Any], str]] | None = None,
    make: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a parameter of a command by one flag per field of a dataclass, which checks the values.

    Args:
        cls: the dataclass; flags take their types and defaults from it.
        parameter: the keyword-only parameter of the command that receives the instance.
        helps: the fields that become flags, with their help texts.
        parsed: fields whose flag is a text: its default, the function that parses it, and its help text.
        make: called with the values in place of `cls`.
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


_PACKING_HELP = {
    "seq_len": "Token slots per pack.",
    "oversize": "Policy for images with more than --seq-len tokens: shrink, drop, skip or error.",
    "algorithm": f"Packing algorithm: {', '.join(get_args(Algorithm))}.",
    "lookahead": "Number of waiting images that the packer chooses from.",
    "fill": "How to use leftover slots: undrop returns dropped tokens; or none, trim, rescale.",
    "max_trim": "Largest share of an image's tokens that trim drops.",
    "max_scale": "Largest relative change of an image's sides by rescale.",
    "balance": "Window of packs reordered to even out attention cost; 0 turns it off.",
    "max_images": "Maximum number of images per pack.",
    "grid_multiple": "Make both sides of every grid a multiple of this.",
    "image_mode": "RGB, L or RGBA.",
    "interpolation": "Resize filter, by its name in PIL.",
}

takes_packing = takes(
    Packing,
    "packing",
    _PACKING_HELP,
    {
        "patch_size": ("16", parse_patch_size, "Side of a patch in pixels, or several such as 8,16,32."),
        "resolution": (
            "native",
            parse_resolution,
            f"Resolution policy: {_RESOLUTIONS}; or a curriculum such as 0=fit:64,1000000=fit:256.",
        ),
        "token_drop": (
            "0",
            parse_token_drop,
            f"Share of each image's tokens to drop: {_TOKEN_DROPS}; append @FIRST:LAST:MIDPOINT:TAU for a schedule.",
        ),
    },
)

takes_evaluation = takes(
    Packing,
    "packing",
    {
        name: _PACKING_HELP[name]
        for name in ("seq_len", "oversize", "max_images", "grid_multiple", "image_mode", "interpolation")
    },
    {
        "patch_size": (
            "",
            lambda text: parse_patch_size(text) if text else None,
            "Side of a patch in pixels; default: the patch size of the model.",
        ),
        "resolution": ("native", parse_resolution, f"Resolution policy: {_RESOLUTIONS}."),
    },
    make=dict,
)

takes_model = takes(
    NaViTConfig,
    "model",
    {
        "width": "Features per token.",
        "depth": "Number of transformer blocks.",
        "heads": "Number of attention heads.",
        "drop_path": "Probability of skipping a branch in the last block (stochastic depth).",
    },
    make=dict,
)

takes_training = takes(
    TrainConfig,
    "training",
    {
        "epochs": "Training budget in epochs; give exactly one of --epochs, --steps and --minutes.",
        "steps": "Training budget in optimizer steps.",
        "minutes": "Training budget in minutes, including the time before a resume.",
        "accumulate": "Batches per optimizer step.",
        "lr": "Peak learning rate.",
        "schedule": "Learning-rate schedule: cosine or rsqrt.",
        "warmup": "Share of the budget for linear warmup.",
        "cooldown": "Share of the budget for the final cooldown to 0, for rsqrt.",
        "layer_decay": "Learning rate of a block relative to the next block.",
        "weight_decay": "Weight decay of AdamW, for matrices only.",
        "clip": "Maximum gradient norm.",
        "ema": "Decay of the moving average of the weights; 0 turns it off.",
        "loss": "softmax, sigmoid or auto, which is softmax for classes.",
        "label_smoothing": "Share of the target that is spread over all classes.",
        "mixup": "Alpha of MixUp; 0 turns it off.",
        "cutmix": "Alpha of CutMix; 0 turns it off.",
        "temperature": "Temperature for distillation.",
        "task_weight": "Weight of the label loss in distillation.",
        "eval_every": "Epochs between evaluations.",
        "save_every": "Steps between additional checkpoints.",
        "save_minutes": "Minutes between additional checkpoints.",
        "keep": "Number of newest checkpoints to keep.",
        "log_steps": "Steps between log entries.",
        "tensorboard": "Write TensorBoard scalars to OUT.",
        "seed": "Random seed of initial weights, shuffles and draws.",
        "device": "auto, cpu or cuda.",
        "precision": "auto, float32 or bfloat16.",
    },
)
