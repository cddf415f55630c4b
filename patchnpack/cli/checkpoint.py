"""What commands that read a checkpoint share: its argument, its model, and the loader of the images to evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchnpack.cli.options.arguments import was_typed
from patchnpack.cli.options.parsers import parse_patch_size
from patchnpack.cli.options.run_file import RUN_FILE, read_run_file
from patchnpack.cli.sources import packed_folder, packing_of_folder

if TYPE_CHECKING:
    from patchnpack.loaders import Index, PackedImageLoader
    from patchnpack.models import NaViT

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]

# Options that a command never takes from the run.
_OWN = {"checkpoint", "shards", "out", "model", "metrics", "seed", "class_weights", "num_classes", "l2"}


def _run_of(checkpoint: Path) -> dict[str, Any]:
    """The options in the run.toml beside a checkpoint; empty without one."""
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / RUN_FILE
    return read_run_file(path) if path.exists() else {}


def _with_defaults_of_run(context: typer.Context, checkpoint: Path) -> Path:
    """Take option defaults from the run.toml beside the checkpoint, so that evaluation packs as training did."""
    run = _run_of(checkpoint)
    for name in ("resolution", "patch_size"):
        if f"eval_{name}" in run:
            run[name] = str(run[f"eval_{name}"])
    if run.get("patch_size"):
        run["patch_size"] = str(_middle(parse_patch_size(str(run["patch_size"]))))
    fields = {str(parameter.name) for parameter in context.command.params} - _OWN
    if "validation" in fields:  # the command fits a head of its own
        fields -= {"validation", "classes"}
    context.default_map = {name: value for name, value in run.items() if name in fields}
    return checkpoint


def _middle(patch_size: Any) -> int:
    """The patch size, or the middle one of several."""
    sizes = sorted(getattr(patch_size, "sizes", (patch_size,)))
    return int(sizes[len(sizes) // 2])


CheckpointFile = Annotated[
    Path,
    typer.Argument(
        is_eager=True,
        callback=_with_defaults_of_run,
        help="A checkpoint.pt, or weights as for `train --init`. If a run.toml lies beside it, options of packing and "
        "labels default to those of the run.",
    ),
]


def load_model(checkpoint: Path, device: str, fields: Mapping[str, Any]) -> NaViT:
    """Load the model of a checkpoint, or of weights of another library, onto a device."""
    from patchnpack.trainer.device import find_device
    from patchnpack.weights import open_model

    found = find_device(device)
    return open_model(checkpoint, fields).to(found)


def unit_of(model: NaViT) -> str:
    """What a model has one output for: an image, or a sample of several."""
    return model.config.scope


def evaluation_loader(
    context: typer.Context,
    checkpoint: Path,
    model: NaViT,
    source: Index | str,
    packing: dict[str, Any],
    storage_options: dict[str, Any],
    **options: Any,
) -> PackedImageLoader:
    """Make a loader that yields each image of the source once, packed for the model.

    A packed folder is read as it was packed. Images of a run on a packed folder are packed as the folder was.

    Raises:
        ValueError: the packed folder drops tokens, draws sizes or mirrors images, or options contradict it.
    """
    from patchnpack.loaders import PackedImageLoader
    from patchnpack.packer import NoDrop
    from patchnpack.predict import evaluation_packing

    options["storage_options"] = storage_options
    if isinstance(source, str):
        typed = {name: value for name, value in packing.items() if was_typed(context, name)}
        own = packing_of_folder(source, storage_options)
        for name in ("label", "classes"):
            if name in options and not was_typed(context, name):
                options[name] = None
        if own.token_drop != NoDrop() or own.resolution.draws or own.flip or own.vflip:
            raise ValueError(
                f"the packs in {source!r} drop tokens, draw sizes or mirror images, so their images are not as they "
                "are in the source; give the shards"
            )
        return PackedImageLoader(source, own.replace(**typed), **options)
    return PackedImageLoader(source, evaluation_packing(model, fields_of_run(context, checkpoint, packing)), **options)


def fields_of_run(context: typer.Context, checkpoint: Path, packing: dict[str, Any]) -> dict[str, Any]:
    """Return the packing options; those not given are as in the packed folder, if any, that the run trained on."""
    trained_on = _run_of(checkpoint).get("shards")
    folder = packed_folder(list(trained_on)) if trained_on else None
    if folder is None:
        return packing
    own = packing_of_folder(folder)
    given = {name for name in packing if was_typed(context, name) or name in (context.default_map or {})}
    rest = {name: getattr(own, name) for name in packing if name not in given}
    if "patch_size" in rest:
        rest["patch_size"] = _middle(rest["patch_size"])
    return {**packing, **rest}


def check_output(flag: str, path: Path, *suffixes: str) -> None:
    """Reject a path with another suffix; create its parent folder."""
    from patchnpack.packer.files import make_folder_of

    if path.suffix not in suffixes:
        raise ValueError(f"{flag} is {str(path)!r}; it must end in {' or '.join(suffixes)}")
    make_folder_of(path)


def excluded(loader: PackedImageLoader) -> str:
    """Describe the images that a loader left out."""
    from patchnpack.packer.text import counted

    stats = loader.stats()
    without = f", {counted(stats['without_image'], 'sample')} without an image" if stats["without_image"] else ""
    pages = f", {stats['multi_page']} with further pages" if stats["multi_page"] else ""
    warnings = f", {counted(sum(stats['warnings'].values()), 'warning')} of decoders" if stats["warnings"] else ""
    left_out = f"{counted(stats['bad_images'], 'bad image')}, {sum(stats['skipped'].values())} skipped{without}"
    return left_out + pages + warnings
