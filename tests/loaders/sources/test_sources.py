from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from patchnpack.loaders import Index, Mixture, PackedImageLoader
from patchnpack.loaders.packs.pack_store import store_of
from patchnpack.loaders.prepacking.job import Job
from patchnpack.loaders.sources import open_source as opening
from patchnpack.loaders.sources.mixture_source import MixtureSource
from patchnpack.loaders.sources.options import LoaderOptions
from patchnpack.loaders.sources.packed_source import PackedSource
from patchnpack.loaders.sources.shard_source import ShardSource
from patchnpack.packer import PackedBatch
from tests.loaders.prepacking.folders import PACKING


def test_each_kind_of_source_is_opened_by_its_own_class(drawn: Any, index: Index, packed: Path) -> None:
    mixture = Mixture({"a": (drawn.shards[0], 1), "b": (drawn.shards[3], 1)})
    for given, kind in ((drawn.shards, ShardSource), (index, ShardSource), (mixture, MixtureSource)):
        loader = PackedImageLoader(given, PACKING, batch_size=2)
        assert type(loader.source) is kind
        assert loader.source.packing == loader.packing
    for folder in (packed, str(packed), f"{packed}/"):
        assert type(PackedImageLoader(folder, batch_size=2).source) is PackedSource


def test_packed_folder_settles_the_options_that_it_has_decided(index: Index, packed: Path) -> None:
    options = PackedImageLoader(packed, batch_size=2).source.options
    decided = PackedImageLoader(index, PACKING, batch_size=2).packing
    assert decided.algorithm != "auto"
    assert (options.packing, options.label, options.num_streams) == (decided, "cls", 1)
    other = PackedImageLoader(packed, batch_size=2, label=lambda members: len(members["txt"]))
    assert callable(other.source.options.label)


def test_settled_options_hold_neither_where_nor_index_so_that_a_loader_can_be_sent(drawn: Any, index: Index) -> None:
    loader = PackedImageLoader(drawn.shards, PACKING, batch_size=2, where=lambda i: i.width > 20, index=index)
    assert (loader.source.options.where, loader.source.options.index) == (None, None)
    again = pickle.loads(pickle.dumps(loader))  # noqa: S301
    assert np.array_equal(again.source.rows.mask, index.width > 20)
    assert len(list(again)) == len(list(loader))


def test_loader_that_was_given_views_of_dicts_can_be_sent(
    drawn: Any, contents: Callable[[PackedBatch], object]
) -> None:
    classes: Any = {str(number): number for number in range(1000)}
    extras: Any = {"cls": 0}

    def loader(classes: Any, extras: Any) -> PackedImageLoader:
        return PackedImageLoader(drawn.shards, PACKING, batch_size=2, label="cls", classes=classes, extras=extras)

    sent = pickle.loads(pickle.dumps(loader(classes.keys(), extras.keys())))  # noqa: S301
    expected = [contents(batch) for batch in loader(list(classes), list(extras))]
    assert [contents(batch) for batch in sent] == expected


def test_another_kind_of_source_is_one_class(
    drawn: Any, monkeypatch: pytest.MonkeyPatch, contents: Callable[[PackedBatch], object]
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class ListedSource(ShardSource):
        """A file with one shard per line."""

        @classmethod
        def accepts(cls, given: Any) -> bool:
            return isinstance(given, Path) and given.suffix == ".list"

        @classmethod
        def open(cls, given: Any, options: LoaderOptions) -> Self:
            return super().open(given.read_text().splitlines(), options)

    listed = drawn.folder / "train.list"
    listed.write_text("\n".join(drawn.shards))
    monkeypatch.setattr(opening, "_KINDS", (ListedSource, *opening._KINDS))
    ours = PackedImageLoader(listed, PACKING, batch_size=2, shuffle=True, label="cls")
    theirs = PackedImageLoader(drawn.shards, PACKING, batch_size=2, shuffle=True, label="cls")
    assert type(ours.source) is ListedSource
    assert ours.state_dict() == theirs.state_dict()
    assert list(map(contents, ours)) == list(map(contents, theirs))


@pytest.mark.parametrize("store", ["images", "patches"])
def test_rows_of_a_packed_folder_have_the_ids_of_the_shards_rows(store: Any, index: Index, tmp_path: Path) -> None:
    Job(source=index, out=str(tmp_path / "packed"), packing=PACKING, store=store, part_packs=1).run()
    stored = PackedImageLoader(tmp_path / "packed", batch_size=2).index
    rows = np.arange(len(index))
    assert len(stored.shards) > 2 * len(index.shards)
    assert stored.row_id(rows).tolist() == index.row_id(rows).tolist()
    shard, row = np.divmod(index.row_id(rows), np.uint64(1 << 32))
    assert shard.tolist() == index.shard_of(rows).tolist()
    assert row.tolist() == (rows - index.starts[index.shard_of(rows)]).tolist()


def test_unknown_store_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="store is 'tokens'; it must be 'images' or 'patches'"):
        store_of("tokens")  # type: ignore[arg-type]
