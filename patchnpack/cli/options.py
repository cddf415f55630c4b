"""Command-line flags that derive from the configuration classes of the library."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args, get_type_hints

import typer

from patchnpack.cli.parsers import RESOLUTIONS, TOKEN_DROPS, parse_patch_size, parse_resolution, parse_token_drop
from patchnpack.models import NaViTConfig
from patchnpack.packer import Packing
from patchnpack.packer.binpacking.algorithms import Algorithm
from patchnpack.trainer import TrainConfig


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
            f"Resolution policy: {RESOLUTIONS}; or a curriculum such as 0=fit:64,1000000=fit:256.",
        ),
        "token_drop": (
            "0",
            parse_token_drop,
            f"Share of each image's tokens to drop: {TOKEN_DROPS}; append @FIRST:LAST:MIDPOINT:TAU for a schedule.",
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
        "resolution": ("native", parse_resolution, f"Resolution policy: {RESOLUTIONS}."),
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
