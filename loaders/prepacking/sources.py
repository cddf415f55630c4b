"""Which sources can be packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patchnpack.loaders.order.mixture import Mixture
from patchnpack.loaders.shards.patterns import is_image_folder, is_packed_folder


def check_source(source: Any, storage_options: Mapping[str, Any] | None) -> None:
    """Raise ValueError for a source that is not a set of images, each of which comes once per epoch."""
    if isinstance(source, Mixture):
        raise ValueError(
            f"source is a Mixture of {', '.join(map(repr, source.sources))}. A mixture repeats and leaves out "
            "images by weight, but a packed folder holds each image once per epoch. Train from the mixture itself, or "
            "pack all images once: give a list of the shards, or torch.utils.data.ConcatDataset([...]) of the data sets"
        )
    if is_packed_folder(source) and not is_image_folder(source, storage_options):
        raise ValueError(
            f"source is the packed folder {str(source)!r}; give the images that it was made of, or unpack it first: "
            f"patchnpack unpack {source} -o SHARDS"
        )
