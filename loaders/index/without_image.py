"""Samples and members of a shard that become no row: how many there are, and which names they have."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from patchnpack.loaders.index.table import Index
from patchnpack.loaders.shards.tar import TarSample, is_reserved

_EXAMPLES = 10  # extensions that a shard's examples show

_log = logging.getLogger("patchnpack")

_warned: set[tuple[object, ...]] = set()  # sources that this process has warned about


@dataclass(slots=True)
class WithoutImage:
    """Counts the samples of one shard that become no row.

    Attributes:
        samples: samples without an image.
        members: their members, and the files that webdataset reserves.
        names: for each extension of these samples, the name of one member; at most 10.
    """

    samples: int = 0
    members: int = 0
    names: dict[str, str] = field(default_factory=dict)

    def add(self, sample: TarSample) -> None:
        """Count a sample without an image."""
        self.members += len(sample.members)
        if "" in sample.members and is_reserved(sample.key):
            return
        self.samples += 1
        for extension in sample.members or ("",):
            if len(self.names) < _EXAMPLES and extension not in self.names:
                name = f"{sample.key}.{extension}" if extension else sample.key
                self.names[extension] = printable(name)


def warn_without_image(index: Index, source: str) -> None:
    """Log a warning if samples or images of a source are not used; once for each source.

    Args:
        index: its index.
        source: its name.
    """
    samples, images = int(index.without_image.sum()), index.other_images
    used = len(index if index.samples is None else index.samples)
    known = (index.shards, index.image, samples, images)
    if known in _warned or not (samples or images):
        return
    _warned.add(known)
    if samples and any(index.files):
        names = [name for shard in index.examples for name in shard]
        _log.warning(
            "%s: %s are left out, such as %s: files that are neither an image (image=%r) nor a member of one, or rows "
            "without a path",
            *(source, f"{samples:,}", ", ".join(map(repr, names[:5])), index.image),
        )
    elif samples:
        names = [name for shard in index.examples for name in shard]
        _log.warning(
            "%s: %s of %s have no image (image=%r) and are left out, such as %r; the members of such samples end in %s "
            "(an extension begins at the first dot of a name)",
            *(source, f"{samples:,}", f"{samples + used:,} samples", index.image, names[0]),
            listed({_extension(name) for name in names}),
        )
    if images:
        _log.warning(
            "%s: %s images are not used, because their samples have another member of image=%r that is listed before; "
            "one image per sample is loaded",
            *(source, f"{images:,}", index.image),
        )


def listed(extensions: Iterable[str], limit: int = 10) -> str:
    """List extensions for a message; names with several dots make thousands of them."""
    names = sorted(extensions)
    text = ", ".join("." + name if name else "no extension" for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def printable(name: str) -> str:
    """A member's name without bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _extension(name: str) -> str:
    """The extension of a member: what follows the first dot of its file name, unless that is the first character."""
    base = name.rpartition("/")[2]
    return "" if base.startswith(".") else base.partition(".")[2].lower()
