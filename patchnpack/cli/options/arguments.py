"""Arguments and options that several commands share, and whether one was given."""

from __future__ import annotations

from typing import Annotated

import typer

from patchnpack.cli.options.flags import IMAGE_FLAGS, whole_flag

Shards = Annotated[
    list[str],
    typer.Argument(
        help="A folder of images; a table of paths (CSV, TSV, JSONL); shards as paths, globs or ranges such as "
        "'train-{000000..000009}.tar'; or an index file."
    ),
]
Pages = Annotated[
    str, typer.Option(help="Files of several pages or frames: first uses the first one, error makes them bad images.")
]
Seed = Annotated[int, whole_flag("Random seed of shuffles and draws.")]
Label = Annotated[
    str | None,
    typer.Option(
        help="Member that holds the label, such as cls or json:FIELD; in a folder: folder; in a table: a column."
    ),
]
Classes = Annotated[str | None, typer.Option(help="File with one class name per line.")]
NumClasses = Annotated[int | None, whole_flag("Number of classes; default: highest label + 1.")]
ClassWeights = Annotated[
    str | None,
    typer.Option(
        help="Factors of the classes in the loss: balanced, or a file with one weight per line, in the order of the "
        "classes, or with lines NAME WEIGHT."
    ),
]
Validation = Annotated[list[str] | None, typer.Option("--validation", help="Validation data, as the training data.")]
BatchSize = Annotated[int, whole_flag("Packs per batch.")]
Storage = Annotated[
    list[str] | None,
    typer.Option("--storage-options", metavar="KEY=VALUE", help=IMAGE_FLAGS["storage_options"].help),
]


def was_given(context: typer.Context, name: str) -> bool:
    """Whether an option comes from the command line or a file rather than from its default."""
    return getattr(context.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT"


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether an option comes from the command line."""
    return getattr(context.get_parameter_source(name), "name", "DEFAULT") == "COMMANDLINE"
