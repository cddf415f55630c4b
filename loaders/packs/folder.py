"""`PackedFolder`: a finished packed folder, with its manifest, its index, its plans and its parts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from patchnpack.loaders.packs.arrow_file import digest_of, map_arrays
from patchnpack.loaders.packs.manifest import Manifest, read_manifest
from patchnpack.loaders.packs.opener import NOT_AS_WRITTEN, PackOpener
from patchnpack.loaders.packs.pack_store import PackStore, store_of
from patchnpack.loaders.packs.recipe import PARTS, ROWS, Recipe, plan_name, unit_name
from patchnpack.loaders.packs.stored_index import StoredIndex, read_rows
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.storage import Folder, LocalFolder, open_folder
from patchnpack.loaders.shards.reader import ShardReader


@dataclass(frozen=True)
class PackedFolder:
    """A finished packed folder.

    Attributes:
        folder: where it is.
        manifest: what it holds.
        opener: opens its files.
    """

    folder: Folder
    manifest: Manifest
    opener: PackOpener

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> PackedFolder:
        """Read the manifest, and compare the sizes of local files with it.

        Raises:
            ValueError: the folder is unfinished, of another schema, or damaged.
            OSError: a file is not what the manifest says.
        """
        folder = open_folder(source, storage_options)
        found = cls(folder, read_manifest(folder), PackOpener(cache_dir, cache_limit, storage_options))
        if isinstance(folder, LocalFolder):
            for name, about in found.manifest.files.items():
                path = found.path(name)
                size = os.stat(path).st_size if os.path.exists(path) else None
                if size != about["nbytes"]:
                    state = "is not there" if size is None else f"has {size} bytes"
                    raise OSError(f"{path} {state}, and should have {about['nbytes']}: it {NOT_AS_WRITTEN}")
        return found

    @property
    def recipe(self) -> Recipe:
        """What the folder was made by."""
        return self.manifest.recipe

    @property
    def store(self) -> PackStore:
        """The format of its parts."""
        return store_of(self.recipe.store)

    @property
    def name(self) -> str:
        """Its path or address without secrets, for messages."""
        return redact(self.folder.address)

    @cached_property
    def digest(self) -> str:
        """A digest of everything that was packed."""
        return digest_of(self.manifest.to_json())

    def path(self, name: str) -> str:
        """Return the path or address of one of its files."""
        return f"{self.folder.address}/{name}"

    def open_file(self, name: str) -> int:
        """Open one of its files; return a descriptor, for the caller to close."""
        about = self.manifest.files[name]
        return self.opener.open(self.path(name), about["nbytes"], about["digest"])

    @cached_property
    def parts(self) -> list[str]:
        """The names of its parts, by number."""
        return [name for name in self.manifest.files if name.startswith(PARTS + "/")]

    @cached_property
    def index(self) -> StoredIndex:
        """The rows of the source, and where they lie now."""
        fd = self.open_file(ROWS)
        try:
            return read_rows(fd, self.folder.address + "/", lambda name: str(self.manifest.files[name]["digest"]))
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path(ROWS)} {NOT_AS_WRITTEN} ({error})") from error
        finally:
            os.close(fd)

    def plan(self, epoch: int, stream: int) -> Mapping[str, np.ndarray]:
        """Return the arrays of the plan of one stream of one epoch; see `StoredOrder.plan`."""
        name = plan_name(epoch, stream)
        fd = self.open_file(name)
        try:
            return map_arrays(fd)
        except (pa.ArrowException, KeyError) as error:
            raise ValueError(f"{self.path(name)} {NOT_AS_WRITTEN} ({error})") from error
        finally:
            os.close(fd)

    def part_numbers(self, epoch: int, stream: int) -> list[int]:
        """Return the numbers of the parts of one stream of one epoch, in order; none if it shares earlier ones."""
        if epoch >= self.store.part_epochs(self.recipe):
            return []
        count = -(-self.manifest.packs[epoch][stream] // self.recipe.part_packs)
        return [self._numbers[unit_name(epoch, stream, number)] for number in range(count)]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name.removeprefix(PARTS + "/").removesuffix(".arrow"): i for i, name in enumerate(self.parts)}

    def reader(self) -> ShardReader:
        """Return a reader of its parts, by number."""
        about = [self.manifest.files[name] for name in self.parts]
        names, sizes = [self.path(name) for name in self.parts], [part["nbytes"] for part in about]
        return ShardReader(names, sizes, [part["digest"] for part in about], self.opener)
