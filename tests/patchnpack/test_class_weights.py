from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from patchnpack import PackedImageLoader, Packing
from patchnpack.class_weights import balanced_weights, class_counts, class_weights, read_weights_file
from tests.loaders.index.samples.rows import write_documents

Shards = Callable[..., str]


def loader(shard: str, label: str | None = "cls") -> PackedImageLoader:
    return PackedImageLoader(shard, Packing(seq_len=64), batch_size=1, label=label)


def test_balanced_weights_even_out_the_images_that_are_read(shards: Shards) -> None:
    read = loader(shards("odd.tar", images=7, broken=2))
    assert class_counts(read, 3).tolist() == [3, 2, 0], "bad images do not count"
    weights = class_weights("balanced", read, 3)
    assert weights.tolist() == [5 / 6, 5 / 4, 0]
    assert (weights * [3, 2, 0]).sum() == pytest.approx(5), "the mean weight of an image is 1"


@pytest.mark.parametrize("label", ["cls", lambda members: int(members["cls"])], ids=["indexed", "read"])
def test_in_scope_sample_each_sample_counts_once(label: Any, tmp_path: Path) -> None:
    shard = write_documents(tmp_path / "a.tar", {"a": [1, 2, 3], "b": [1], "c": [1, 2]})  # of classes 0, 1 and 2

    def counts(scope: Literal["image", "sample"]) -> Any:
        packing = Packing(seq_len=64, scope=scope)
        read = PackedImageLoader(shard, packing, batch_size=1, label=label, sample="members")
        return class_counts(read, 3).tolist()

    assert counts("image") == [3, 1, 2]
    assert counts("sample") == [1, 1, 1]


def test_labels_outside_the_index_are_read(shards: Shards) -> None:
    by_rule = PackedImageLoader(
        shards(), Packing(seq_len=64), batch_size=1, label=lambda members: int(members["cls"]) + 1
    )
    assert class_counts(by_rule, 3).tolist() == [0, 12, 12]
    with pytest.raises(ValueError, match=r"label 2 is not a class from 0 to 1; set num_classes"):
        class_counts(by_rule, 2)


def test_targets_have_no_balance(shards: Shards) -> None:
    targets = PackedImageLoader(shards(), Packing(seq_len=64), batch_size=1, label=lambda members: [0.0, 1.0])
    with pytest.raises(ValueError, match=r"'balanced', but the labels are targets of 2 numbers; give a file"):
        class_weights("balanced", targets, 2)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("1\n2.5\n0\n", [1, 2.5, 0]),
        ("\ufeff1\n\n2\n3", [1, 2, 3]),
        ("long shirt 2\nhat 1\nT-shirt\t3\n", [1, 3, 2]),
        ("hat,1\nlong shirt, 2\n1,3", [1, 3, 2]),
    ],
)
def test_a_file_holds_a_weight_per_line_or_per_name(text: str, weights: list[float], tmp_path: Path) -> None:
    path = tmp_path / "weights.txt"
    path.write_text(text)
    classes = {"hat": 0, "T-shirt": 1, "long shirt": 2}
    assert read_weights_file(path, 3, classes).tolist() == weights


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n", r"has no weight for class 2 of 3; give one per class"),
        ("1\n2\n3\n4\n", r"has line 4, but there are 3 classes"),
        ("cap 1\n", r"has class 'cap', but there are 3 classes"),
        ("1\nheavy\n3", r"has the weight 'heavy'; give a number"),
        ("hat 1\nhat 2\n", r"has two weights for class 'hat'; give one"),
    ],
)
def test_a_wrong_file_is_answered_with_what_to_do(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_weights_file(path, 3, {"hat": 0})
    with pytest.raises(FileNotFoundError, match=r"does not exist; give 'balanced', or a file"):
        read_weights_file(tmp_path / "absent", 3)


def test_no_image_gives_no_weight() -> None:
    assert balanced_weights(np.zeros(2, np.int64)).tolist() == [0, 0]
