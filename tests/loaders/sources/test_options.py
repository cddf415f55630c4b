from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patchnpack.loaders import Index, PackedImageLoader
from patchnpack.packer import PackedBatch, Packing
from tests.loaders.loading import PACKING

Check = Callable[..., None]
Contents = Callable[[PackedBatch], tuple[object, ...]]
MakeDrawn = Callable[..., Any]


# Mistakes are found before any work


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be a whole number"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"num_threads": -1}, "num_threads is -1"),
        ({"shuffle_window": 0}, "shuffle_window is 0"),
        ({"num_streams": 0}, "num_streams is 0"),
        ({"num_streams": 4, "block": 6}, "block is 6; it must be a multiple of num_streams, 4"),
        ({"even": "fill"}, "even is 'fill'; it must be one of 'pad', 'drop'"),
        ({"rank": 0}, "rank is 0 and world_size is None; give both or neither"),
        ({"world_size": 2}, "rank is None and world_size is 2; give both or neither"),
        ({"rank": 2, "world_size": 2}, "rank is 2; it must be from 0 to world_size - 1 = 1"),
        ({"rank": -1, "world_size": 2}, "rank is -1"),
        ({"extras": "txt"}, r"extras is 'txt'; give a list of extensions: \['txt'\]"),
        (
            {"extras": ["caption"]},
            "extras asks for 'caption', which no sample has; their members are .cls, .jpg, .png, .txt",
        ),
        ({"label": "class"}, "label 'class' is absent from all 60 samples; their members are .cls, .jpg, .png, .txt"),
        ({"label": "json:class"}, "label 'json:class' is absent from all 60 samples"),
        ({"label": "cls", "classes": ["a", "b"]}, "is not among the 2 classes"),
        (
            {"packing": Packing(patch_size=64, undersize="error")},
            r"is smaller than a patch of 64x64 .* use a smaller patch_size, or choose undersize='pad' or 'skip'; the "
            r"first is 's\d+i\d+' in shard",
        ),
        ({"packing": PACKING.replace(seq_len=8, oversize="error")}, "more than seq_len 8"),
    ],
)
def test_invalid_option_raises_with_value_and_fix(options: dict[str, Any], message: str, index: Index) -> None:
    with pytest.raises(ValueError, match=message):
        PackedImageLoader(index, **{"packing": PACKING, "batch_size": 2, **options})


def test_streams_that_do_not_divide_a_step_are_refused_when_iteration_starts(index: Index) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=3, num_streams=2)
    with pytest.raises(ValueError, match="a block has 3 packs, which num_streams 2 does not divide; choose"):
        iter(loader)


def test_seq_len_zero_and_negative_epochs_are_refused(index: Index) -> None:
    with pytest.raises(ValueError, match="seq_len is 0; it must be at least 1"):
        PackedImageLoader(index, Packing(seq_len=0), batch_size=1)
    with pytest.raises(ValueError, match="epoch is -1; it must be at least 0"):
        PackedImageLoader(index, PACKING, batch_size=1).set_epoch(-1)


def test_invalid_source_raises_with_value_and_fix(
    tmp_path: Path, write_tar: Callable[..., str], drawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "text.tar", [("a.txt", b"x")])
    for source, error, message in (
        ("train-{000000..000009}.tar", FileNotFoundError, "shard 'train-000000.tar' does not exist"),
        ("train-{}.tar", ValueError, "braces in 'train-{}.tar' name no shard"),
        ("text.tar", ValueError, r"shard '.*text.tar' has no image: its members end in .txt"),
        (drawn.folder, ValueError, "is a folder of 6 shards; name the shards"),
    ):
        with pytest.raises(error, match=message):
            PackedImageLoader(source, PACKING, batch_size=1)
