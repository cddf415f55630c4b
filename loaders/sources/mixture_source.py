"""A mixture as a source: several sources of any kind but packed folders, drawn from by weight."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.assembly.samples import IndexedBatchContext
from patchnpack.loaders.assembly.transform import watched
from patchnpack.loaders.datasets.hugging_face import HuggingFaceAdapter
from patchnpack.loaders.datasets.labels import dataset_targets, label_members
from patchnpack.loaders.imaging.readers.boxed.heif import has_heif
from patchnpack.loaders.imaging.user_decode import in_order, user_formats
from patchnpack.loaders.index.files.file_sources import has_table
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.labels.label_rule import Label
from patchnpack.loaders.labels.labels import Labels
from patchnpack.loaders.order.mixture import Mixed, Mixture
from patchnpack.loaders.order.order import Order
from patchnpack.loaders.order.row_filter import RowFilter
from patchnpack.loaders.shards.names import names_of
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.loaders.shards.sample_rule import Sample
from patchnpack.loaders.sources.class_names import joined_classes, settle_names
from patchnpack.loaders.sources.dataset_source import DatasetSource, OpenedDataset, items_of_options
from patchnpack.loaders.sources.mixed_labels import MixedLabels
from patchnpack.loaders.sources.mixed_samples import MixedContext
from patchnpack.loaders.sources.options import LoaderOptions
from patchnpack.loaders.sources.shard_source import ShardSource, labels_of, shard_index, shard_opener
from patchnpack.loaders.sources.source import extra_members, indexed_targets
from patchnpack.loaders.targets.target import Target, members_of
from patchnpack.packer import Packing
from patchnpack.packer.text import counted


@dataclass(frozen=True, kw_only=True)
class MixtureSource(ShardSource):
    """The images of several sources under one index; see `Source`.

    Attributes:
        mixed: which shards belong to which source, and how many images each gives an epoch. A data set is one shard.
        datasets: the sources that are data sets, by their numbers.
    """

    mixed: Mixed
    datasets: dict[int, OpenedDataset]

    @classmethod
    def accepts(cls, given: Any) -> bool:
        """Return whether `given` is a `Mixture`."""
        return isinstance(given, Mixture)

    @classmethod
    def open(cls, given: Mixture, options: LoaderOptions) -> Self:
        """Open the index of each source, and join them.

        Raises:
            ValueError: as each source alone; or an option is of one source, and the mixture has several.
        """
        if options.index is not None:
            raise ValueError("index= is for one source; in a Mixture, name index files as sources")
        names, sources = list(given.sources), [source for source, _ in given.sources.values()]
        numbers = [i for i, source in enumerate(sources) if DatasetSource.accepts(source)]
        others = [i for i in range(len(sources)) if i not in numbers]
        _check_options(options, len(numbers), len(others))
        given_label, labels = options.label, _by_source("label", options.label, names)
        rules = _by_source("sample", options.sample, names)
        options = replace(options, label=_common_label({names[i]: labels[names[i]] for i in others}))
        opener = shard_opener(options)
        found = _indexes([sources[i] for i in others], [rules[names[i]] for i in others], options, opener)
        parts = dict(zip(others, found, strict=True))
        datasets: dict[int, OpenedDataset] = {}
        if numbers:
            given_here = {names[i]: (sources[i], labels[names[i]], rules[names[i]]) for i in numbers}
            options = _settled_by_all(parts, given_here, options)
            for i in numbers:
                own = replace(options, label=labels[names[i]], sample=rules[names[i]])
                datasets[i] = _open_dataset(sources[i], own, opener)
                index = datasets[i].index
                parts[i] = replace(index, shards=(f"{index.shards[0]} {names[i]!r}",), image=options.image)
        indexes = [parts[i] for i in range(len(sources))]
        index, options = settle_names(_joined(indexes), options)
        rows = RowFilter.of(
            index, options.where, options.policy, options.decode, options.pages, has_heif(), options.packing
        )
        index, heads = rows.usable(index), rows.heads(index)
        mixed = Mixed.of(given, indexes, heads)
        packing = rows.decide(index, options.packing or Packing(), options.seed, mixed.frequency(index, heads))
        return cls(
            options=options.settled(label=given_label if datasets else options.label),
            index=index,
            rows=rows,
            packing=packing,
            opener=opener,
            mixed=mixed,
            datasets=datasets,
        )

    @property
    def name(self) -> str:
        """The names of the sources and the images that an epoch takes from each."""
        shares = zip(self.mixed.names, self.mixed.images, strict=True)
        return "a mixture of " + ", ".join(f"{name} ({counted(images, 'image')})" for name, images in shares)

    def order(self, block: int) -> Order:
        """Return the order of packs, whose rows are drawn from all sources."""
        return replace(super().order(block), mixed=self.mixed)

    def labels(self, reader: ShardReader) -> Labels | MixedLabels:  # type: ignore[override]
        """Return labels that are read from the members of the samples, or come with the items of data sets.

        Raises:
            ValueError: no sample has the label, or the labels of two sources differ in shape.
        """
        if not self.datasets:
            return super().labels(reader)
        names, starts, indexed = self.mixed.names, self._starts, None
        others = [i for i in range(len(names)) if i not in self.datasets]
        labels = _by_source("label", self.options.label, list(names))
        label = _common_label({names[i]: labels[names[i]] for i in others})
        if label is not None:
            rows = [range(starts[i], starts[i + 1]) for i in others]
            indexed = labels_of(self.index, replace(self.options, label=label), reader, rows)
        return MixedLabels(names, starts, indexed, {i: data.labels for i, data in self.datasets.items()})

    def batch_context(self, buffers: BufferPool) -> IndexedBatchContext:
        """Return a context that reads and decodes the images, each as its source does."""
        options, targets = self.options, self._targets()
        if not self.datasets:
            return super().batch_context(buffers)
        reader = self.reader()
        return MixedContext(
            index=self.index,
            reader=reader,
            packing=self.packing,
            labels=self.labels(reader),  # type: ignore[arg-type]
            extras=options.extras,
            transform=watched(options.transform),
            seed=options.seed,
            buffers=buffers,
            errors=options.policy,
            user_decode=options.decode,
            targets=targets,
            formats=in_order(user_formats(options.formats), self.index.formats),
            starts=self._starts,
            datasets={i: data.context(options, self.packing, reader, buffers) for i, data in self.datasets.items()},
        )

    def fingerprint(self, order: Order) -> dict[str, str]:
        """Return what the order depends on, with the fingerprints of data sets whose images have no digest."""
        data = {self.mixed.names[i]: dataset.data for i, dataset in self.datasets.items()}
        return super().fingerprint(order) | ({"data": repr(data)} if data else {})

    def _targets(self) -> dict[str, Target]:
        """Return the targets, whose members each source must have."""
        given = self.options.targets or {}
        others = [i for i in range(len(self.mixed.names)) if i not in self.datasets]
        targets = indexed_targets(given, self.index) if others else dict(given)
        for dataset in self.datasets.values():
            dataset_targets(dataset.items, targets)
        for i in others:
            rows = slice(self._starts[i], self._starts[i + 1])
            for name, target in targets.items():
                for member in members_of(target):
                    if (self.index.members[member][rows, 0] < 0).all():
                        raise ValueError(
                            f"target {name!r} asks for the member {member!r}, which no sample of source "
                            f"{self.mixed.names[i]!r} has, and each source of a mixture must have it: add it, or leave "
                            "the source out"
                        )
        return targets

    @property
    def _starts(self) -> np.ndarray:
        """The first row of each source, and the number of all rows: int64 (k + 1,)."""
        starts: np.ndarray = self.index.starts[list(self.mixed.shards)]
        return starts


def _check_options(options: LoaderOptions, num_datasets: int, num_others: int) -> None:
    """Raise ValueError for an option that no source has a use for, or that is of one data set among several."""
    for name in ("path", "root"):
        if not num_others and getattr(options, name) is not None:
            raise ValueError(f"{name}= is for tables of paths (CSV, TSV, JSONL, parquet); leave it out")
    for name in ("sizes", "thread_safe", "fingerprint"):
        if not num_datasets and getattr(options, name) is not None:
            raise ValueError(f"{name}= is for data sets with __len__ and __getitem__; for other sources leave it out")
    if num_datasets > 1 and options.sizes is not None:
        raise ValueError(f"sizes= is for one data set, and the mixture has {num_datasets}; leave it out")
    if num_datasets > 1 and isinstance(options.fingerprint, str):
        raise ValueError(
            f"fingerprint is {options.fingerprint!r}, and the mixture has {num_datasets} data sets; give a function "
            "from a data set to its text"
        )


def _by_source(option: str, given: Any, names: list[str]) -> dict[str, Any]:
    """Return what each source is given as `option`, which is one value for all, or a dict by source."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    if set(given) != set(names):
        wrong = [f"has no source {name!r}" for name in names if name not in given]
        wrong += [f"names {name!r}, which is no source" for name in given if name not in names]
        raise ValueError(
            f"{option} {wrong[0]}; a dict gives each source of the mixture its {option}, None for no {option}: the "
            f"sources are {', '.join(map(repr, names))}"
        )
    return dict(given)


def _common_label(labels: dict[str, Label]) -> Label:
    """Return the label of the sources that an index describes: their members are read by one rule."""
    first, common = next(iter(labels.items()), ("", None))
    for name, label in labels.items():
        if label != common:
            raise ValueError(
                f"label is {common!r} for source {first!r} and {label!r} for {name!r}; shards, folders and tables of a "
                "mixture share one label: give a function of a sample's members"
            )
    return common


def _joined(parts: list[Index]) -> Index:
    return parts[0] if len(parts) == 1 else Index.concatenate(parts)


def _settled_by_all(
    parts: dict[int, Index], datasets: dict[str, tuple[Any, Label, Sample]], options: LoaderOptions
) -> LoaderOptions:
    """Return the options with the members that `extras` names, and the classes that all sources name together.

    Args:
        parts: the indexes of the sources that are no data sets.
        datasets: each other source, with its label and its rule for samples.
        options: as given.
    """
    classes = options.classes
    if parts:
        index = _joined(list(parts.values()))
        options = replace(options, extras=extra_members(options.extras, index))
        _, options = settle_names(index, options)
    items = {
        name: items_of_options(given, replace(options, sample=rule)) for name, (given, _, rule) in datasets.items()
    }
    members = {name: label_members(items[name], label) for name, (_, label, _) in datasets.items()}
    if options.classes is not None and options.label is None and not any(map(any, members.values())):
        raise ValueError("classes= names the classes of labels, and label is None; give label=, such as 'label'")
    if classes is not None:
        return options
    tables = [
        (name, adapter.classes_of(member), isinstance(adapter, HuggingFaceAdapter))
        for name in items
        for adapter, member in zip(items[name].adapters, members[name], strict=True)
        if isinstance(member, str)
    ]
    named = [(name, table, by_name) for name, table, by_name in tables if table]
    names = None if options.classes is None else list(options.classes)  # type: ignore[arg-type]
    return replace(options, classes=joined_classes(names, named))


def _open_dataset(given: Any, options: LoaderOptions, opener: ShardOpener) -> OpenedDataset:
    """Open a data set of a mixture, which needs no label where `classes` is given: other sources have labels."""
    if not any(label_members(items_of_options(given, options), options.label)):
        options = replace(options, classes=None)
    return OpenedDataset.open(given, options, opener)


def _indexes(sources: list[Any], rules: list[Sample], options: LoaderOptions, opener: ShardOpener) -> list[Index]:
    """Open the index of each source by its rule; `path` and `root` are for those that are tables of paths."""
    sources = [
        source if isinstance(source, Index | str | os.PathLike) else names_of(source)  # a generator yields names once
        for source in sources
    ]
    plain = replace(options, path=None, root=None)
    tables = [not isinstance(source, Index) and has_table(names_of(source), options.path) for source in sources]
    if not any(tables):  # the first names the option that it has no use for
        plain = options
    return [
        shard_index(source, replace(options if is_table else plain, sample=rule), opener)
        for source, rule, is_table in zip(sources, rules, tables, strict=True)
    ]
