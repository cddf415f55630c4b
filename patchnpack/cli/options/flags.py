"""Command-line flags that become the configuration classes of the library.

The classes import numba or torch, which take seconds, so this module repeats the defaults of their fields; a test
holds the two equal. A class is imported when a command runs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from patchnpack.cli.options.model_fields import parse_model_fields
from patchnpack.cli.options.parsers import (
    FRAMES,
    RESOLUTIONS,
    TOKEN_DROPS,
    names_function,
    parse_convert,
    parse_decode,
    parse_frames,
    parse_patch_size,
    parse_resolution,
    parse_storage_options,
    parse_token_drop,
    parse_views,
)

if TYPE_CHECKING:
    from patchnpack.loaders.imaging.user_decode import Decode
    from patchnpack.packer import Packing
    from patchnpack.trainer import TrainConfig

ALGORITHMS = (
    "auto",
    "next_fit",
    "first_fit",
    "best_fit",
    "first_fit_decreasing",
    "best_fit_decreasing",
    "largest_fit",
    "subset_sum",
    "priced",
)

# Parameters of these classes become flags, so `takes` resolves their annotations without importing the classes.
_BECOME_FLAGS = {"Packing": object, "TrainConfig": object}


class FieldFlag(NamedTuple):
    """The flag for a field of a configuration class.

    Attributes:
        default: the default of the flag.
        help: its help text.
        kind: the type of its value; by default the type of the default.
        parse: makes the value of the field from the value of the flag.
        imports: whether a text may name a function, whose module `parse` imports. Such a text must be typed: a file of
            options, which may come from anywhere, does not import a module.
    """

    default: Any
    help: str
    kind: Any = None
    parse: Callable[[Any], Any] | None = None
    imports: bool = False


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
    parameter: str, flags: Mapping[str, FieldFlag], make: Callable[..., Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a parameter of a command by flags.

    Args:
        parameter: the keyword-only parameter of the command that receives what `make` returns.
        flags: the flag for each field, in the order of `--help`.
        make: called with the values of the fields, as keyword arguments; it checks them.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapped(**arguments: Any) -> None:
            values = {name: arguments.pop(name) for name in flags}
            for name, flag in flags.items():
                if flag.imports:
                    _check_typed(arguments.get("context"), name, values[name])
                if flag.parse is not None:
                    values[name] = flag.parse(values[name])
            command(**arguments, **{parameter: make(**values)})

        signature = inspect.signature(command, locals=_BECOME_FLAGS, eval_str=True)
        parameters = [p for p in signature.parameters.values() if p.name != parameter]
        parameters += [_parameter(name, flag) for name, flag in flags.items()]
        wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def _check_typed(context: typer.Context | None, name: str, text: str | None) -> None:
    """Raise ValueError for a function that only a file of options names; commands that read one have a context."""
    source = None if context is None else context.get_parameter_source(name)
    if text and names_function(text) and getattr(source, "name", "") == "DEFAULT_MAP":
        raise ValueError(
            f"{name} is {text!r} in a file of options (run.toml or --config), which does not import modules by itself; "
            f"if you trust it, give --{name} {text}, otherwise --{name} ''"
        )


def _parameter(name: str, flag: FieldFlag) -> inspect.Parameter:
    kind = flag.kind or type(flag.default)
    makes = {int: whole_flag, int | None: whole_flag, float: _number_flag, float | None: _number_flag}
    metavar = "KEY=VALUE" if kind == list[str] | None else None
    option = makes[kind](flag.help) if kind in makes else typer.Option(help=flag.help, metavar=metavar)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, option], default=flag.default
    )


class ImageOptions(NamedTuple):
    """Which images a command reads, and how it reaches them.

    Attributes:
        image: extensions of image files, separated by semicolons.
        sample: which images belong together, or None.
        path: the column of paths in a table, or None.
        root: the folder that the paths in a table count from, or None.
        storage_options: options for remote shards.
        decode: the function that decodes images, or None.
    """

    image: str
    sample: str | None
    path: str | None
    root: str | None
    storage_options: dict[str, Any]
    decode: Decode | None = None


# The default of `--image`: IMAGE of loaders/shards/tar.py, which imports PIL.
IMAGES = (
    "jpg;jpeg;jpe;jfif;png;apng;webp;gif;bmp;dib;tif;tiff;avif;avifs;jxl;jp2;j2k;j2c;jpc;jpf;jpx;heic;heif;hif;"
    "dcm;dicom"
)

IMAGE_FLAGS = {
    "image": FieldFlag(IMAGES, "Extensions of image files, separated by semicolons."),
    "sample": FieldFlag(
        None,
        "Images that belong together: members (of a tar's sample, of a list, pages of a file), or key:REGEX such as "
        "'key:(.+)_[0-9]+'; default: each image is alone.",
        str | None,
    ),
    "path": FieldFlag(
        None, "Column of paths in a table; default: the only one with a usual name, such as file_name.", str | None
    ),
    "root": FieldFlag(None, "Folder that the paths in a table count from; default: that of the table.", str | None),
    "storage_options": FieldFlag(
        None,
        "Option for remote shards, such as anon=true, endpoint_url=URL or retry.attempts=3; may be repeated.",
        list[str] | None,
        parse=lambda texts: parse_storage_options(texts or ()),
    ),
}
takes_headers = takes("images", IMAGE_FLAGS, ImageOptions)
DECODE = FieldFlag(
    None,
    "Function from the bytes of an image to its pixels, MODULE:FUNCTION, for images that the loader does not read.",
    str | None,
    parse=parse_decode,
    imports=True,
)
takes_images = takes("images", {**IMAGE_FLAGS, "decode": DECODE}, ImageOptions)


def make_packing(**values: Any) -> Packing:
    """Return the packing; its class checks the values."""
    from patchnpack.packer import Packing

    return Packing(**values)


def make_train_config(**values: Any) -> TrainConfig:
    """Return the configuration of training; its class checks the values."""
    from patchnpack.trainer import TrainConfig

    return TrainConfig(**values)


PACKING_FLAGS = {
    "seq_len": FieldFlag(1024, "Token slots per pack."),
    "patch_size": FieldFlag("16", "Side of a patch in pixels, or several such as 8,16,32.", parse=parse_patch_size),
    "resolution": FieldFlag(
        "native",
        f"Resolution policy: {RESOLUTIONS}; or a curriculum such as 0=fit:64,1000000=fit:256.",
        parse=parse_resolution,
    ),
    "oversize": FieldFlag("shrink", "Policy for samples with more than --seq-len tokens: shrink, drop, skip or error."),
    "undersize": FieldFlag("pad", "Policy for images smaller than a patch: pad, skip or error."),
    "token_drop": FieldFlag(
        "0",
        f"Share of each image's tokens to drop: {TOKEN_DROPS}; append @FIRST:LAST:MIDPOINT:TAU for a schedule.",
        parse=parse_token_drop,
    ),
    "select": FieldFlag("random", "Which tokens stay: random ones, or those with the most detail."),
    "frames": FieldFlag(
        "",
        f"Images used of each sample, all by default: {FRAMES}; append :repeat or :skip for samples with fewer.",
        parse=parse_frames,
    ),
    "views": FieldFlag(
        "",
        "Crops of each image, instead of --resolution, such as 2=crop:196:0.25:1,8=crop:36:0.05:0.25.",
        parse=parse_views,
    ),
    "algorithm": FieldFlag("auto", f"Packing algorithm: {', '.join(ALGORITHMS)}."),
    "lookahead": FieldFlag(256, "Number of waiting samples that the packer chooses from."),
    "max_images": FieldFlag(64, "Maximum number of images per pack."),
    "fill": FieldFlag("undrop", "How to use leftover slots: undrop returns dropped tokens; or none, trim, rescale."),
    "max_trim": FieldFlag(0.05, "Largest share of an image's tokens that trim drops."),
    "max_scale": FieldFlag(0.05, "Largest relative change of an image's sides by rescale."),
    "balance": FieldFlag(256, "Window of packs reordered to even out attention cost; 0 turns it off."),
    "scope": FieldFlag("image", "What a token attends to: its image or its sample; sets attention cost and model."),
    "grid_multiple": FieldFlag(1, "Make both sides of every grid a multiple of this."),
    "image_mode": FieldFlag("RGB", "Colours of 8 bits: RGB, L or RGBA."),
    "channels": FieldFlag(
        None, "Bands per pixel, instead of --image-mode; 1, 3 and 4 of uint8 are colours.", int | None
    ),
    "dtype": FieldFlag("uint8", "Type of the pixels' values: uint8, uint16, int16 or float32."),
    "convert": FieldFlag(
        None,
        "How files of another depth or number of bands become these: scale, exact, window:LOW:HIGH or MODULE:FUNCTION.",
        str | None,
        parse=parse_convert,
        imports=True,
    ),
    "interpolation": FieldFlag("bicubic", "Resize filter, by its name in PIL."),
}

takes_packing_but_lookahead = takes(
    "packing", {name: flag for name, flag in PACKING_FLAGS.items() if name != "lookahead"}, make_packing
)
takes_packing = takes("packing", PACKING_FLAGS, make_packing)

_OF_EVALUATION = (
    "seq_len",
    "patch_size",
    "resolution",
    "oversize",
    "undersize",
    "frames",
    "max_images",
    "grid_multiple",
    "image_mode",
    "channels",
    "dtype",
    "convert",
    "interpolation",
)
EVALUATION_FLAGS = {
    **{name: PACKING_FLAGS[name] for name in _OF_EVALUATION},
    "patch_size": FieldFlag(
        "",
        "Side of a patch in pixels; default: the patch size of the model.",
        parse=lambda text: parse_patch_size(text) if text else None,
    ),
    "resolution": FieldFlag("native", f"Resolution policy: {RESOLUTIONS}.", parse=parse_resolution),
}

takes_evaluation = takes("packing", EVALUATION_FLAGS, dict)

MODEL_FLAGS = {
    "width": FieldFlag(192, "Features per token."),
    "depth": FieldFlag(6, "Number of transformer blocks."),
    "heads": FieldFlag(3, "Number of attention heads."),
    "position": FieldFlag(
        "absolute",
        "Position embedding: absolute (tables of --max-grid), fractional, sinusoidal, fourier, grid, learned_grid, mlp "
        "or rope, which take any grid; several, such as learned_grid,mlp, are added.",
        parse=lambda text: tuple(text.split(",")) if "," in text else text,
    ),
    "max_grid": FieldFlag(128, "Most patches per side of an image, for the tables of --position absolute."),
    "drop_path": FieldFlag(0.0, "Probability of skipping a branch in the last block (stochastic depth)."),
}

MODEL = FieldFlag(
    None,
    "Field of NaViTConfig, such as pooling=mean, registers=4 or position_grid=4,16; may be repeated.",
    list[str] | None,
    parse=lambda texts: parse_model_fields(texts or ()),
)
takes_model = takes("model", {**MODEL_FLAGS, "model": MODEL}, dict)
takes_model_fields = takes("model", {"model": MODEL}, lambda model: model)


def parse_freeze(text: str) -> int | str:
    """Parse the value of --freeze; `TrainConfig` checks it."""
    return int(text) if text.isdecimal() else text


TRAINING_FLAGS = {
    "epochs": FieldFlag(
        None, "Training budget in epochs; give exactly one of --epochs, --steps and --minutes.", int | None
    ),
    "steps": FieldFlag(None, "Training budget in optimizer steps.", int | None),
    "minutes": FieldFlag(None, "Training budget in minutes, including the time before a resume.", float | None),
    "accumulate": FieldFlag(1, "Batches per optimizer step."),
    "lr": FieldFlag(0.0002, "Peak learning rate."),
    "schedule": FieldFlag("cosine", "Learning-rate schedule: cosine or rsqrt."),
    "warmup": FieldFlag(0.1, "Share of the budget for linear warmup."),
    "cooldown": FieldFlag(0.2, "Share of the budget for the final cooldown to 0, for rsqrt."),
    "layer_decay": FieldFlag(1.0, "Learning rate of a block relative to the next block."),
    "freeze": FieldFlag(
        "0", "Number of first blocks that do not train, or backbone: only the head trains.", parse=parse_freeze
    ),
    "weight_decay": FieldFlag(0.05, "Weight decay of AdamW, for matrices only."),
    "clip": FieldFlag(1.0, "Maximum gradient norm."),
    "skip_bad_steps": FieldFlag(
        0, "Maximum number of consecutive steps to skip because the loss or the gradient is NaN or infinite."
    ),
    "ema": FieldFlag(0.0, "Decay of the moving average of the weights; 0 turns it off."),
    "loss": FieldFlag("auto", "softmax, sigmoid or auto, which is softmax for classes."),
    "label_smoothing": FieldFlag(0.1, "Share of the target that is spread over all classes."),
    "mixup": FieldFlag(0.0, "Alpha of MixUp; 0 turns it off."),
    "cutmix": FieldFlag(0.0, "Alpha of CutMix; 0 turns it off."),
    "temperature": FieldFlag(1.0, "Temperature for distillation."),
    "task_weight": FieldFlag(0.0, "Weight of the label loss in distillation."),
    "eval_every": FieldFlag(1, "Epochs between evaluations."),
    "save_every": FieldFlag(None, "Steps between additional checkpoints.", int | None),
    "save_minutes": FieldFlag(None, "Minutes between additional checkpoints.", float | None),
    "keep": FieldFlag(1, "Number of newest checkpoints to keep."),
    "log_steps": FieldFlag(10, "Steps between log entries."),
    "seed": FieldFlag(0, "Random seed of initial weights, shuffles and draws."),
    "device": FieldFlag("auto", "auto, cpu or cuda."),
    "precision": FieldFlag("auto", "auto, float32 or bfloat16."),
    "activation_checkpointing": FieldFlag(False, "Recompute each block in the backward pass, which saves memory."),
    "compile": FieldFlag(False, "Compile the blocks with torch.compile."),
    "sharding": FieldFlag("ddp", "With several ranks: ddp, or fsdp, which shares out the model and its checkpoints."),
}

takes_training = takes("training", TRAINING_FLAGS, make_train_config)
