"""An image store keeps the rows of whole samples, and each file once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from patchnpack.loaders import Index, scan
from patchnpack.loaders.packs.kept_rows import kept_rows, positions_in
from patchnpack.packer import Frames, Plan, plan
from tests.loaders.prepacking.documents import PACKING, write_documents


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Documents of pages that are members, or the pages of one TIFF."""
    return scan(write_documents(tmp_path_factory.mktemp("documents"), "members"), sample="members")


def planned(index: Index, frames: Frames | None) -> Plan:
    assert index.samples is not None
    first = np.random.default_rng(0).permutation(index.samples.starts[:-1])
    return plan(index.rows(first), PACKING.replace(frames=frames))


@pytest.mark.parametrize("frames", [None, Frames(1), Frames(2, "random"), Frames(4, short="repeat")])
@pytest.mark.parametrize("leave_out", [False, True])
def test_rows_of_whole_samples_are_kept_with_the_first_row_of_their_file(
    index: Index, frames: Frames | None, leave_out: bool
) -> None:
    samples = index.samples
    assert samples is not None
    if leave_out:  # the second row of each sample that has one, and the first page of one TIFF
        unused = np.diff(samples.sample_of(np.arange(len(index))), prepend=-1) == 0
        unused &= np.roll(np.diff(samples.sample_of(np.arange(len(index))), prepend=-1) > 0, 1)
        unused[int(np.flatnonzero(samples.page == 1)[0]) - 1] = True
        samples = replace(samples, unused=unused)
        index = replace(index, samples=samples)
    chosen = planned(index, frames)
    assert len(chosen) > 2
    kept = kept_rows(chosen, index)
    position = 0
    for number in range(len(chosen)):
        assert kept.ends[number] == position
        rows = dict.fromkeys(samples.sample_of(chosen.pack(number).row).tolist())
        for sample in rows:
            first = position
            for row in range(samples.starts[sample], samples.starts[sample + 1]):
                if samples.page[row] == 0:
                    first = position
                if samples.unused is None or not samples.unused[row]:
                    assert (kept.rows[position], kept.file[position]) == (row, first)
                    position += 1
    assert kept.ends[-1] == position == len(kept.rows)
    assert kept.files.tolist() == [row for i, row in enumerate(kept.rows.tolist()) if kept.file[i] == i]
    where = positions_in(kept, chosen.images, chosen.offsets)
    begins = np.repeat(kept.ends[:-1], np.diff(chosen.offsets))
    assert kept.rows[begins + where].tolist() == chosen.images.row.tolist()


def test_without_samples_each_row_is_a_file_of_its_own(index: Index) -> None:
    alone = replace(index, samples=None)
    chosen = plan(alone.rows(np.arange(len(alone))), PACKING)
    kept = kept_rows(chosen, alone)
    assert kept.rows.tolist() == kept.files.tolist() == chosen.images.row.tolist()
    assert kept.ends.tolist() == chosen.offsets.tolist()
