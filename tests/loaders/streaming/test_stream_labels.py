"""Labels of a stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from patchnpack.loaders.streaming.pack_stream import pack_stream
from tests.loaders.streaming.streams import PACKING, flat


def test_labels_of_decoded_and_undecoded_members_agree() -> None:
    members: list[tuple[Any, str | None, Any]] = [
        (b"3", "cls", 3),
        ("3\n", "cls", 3),
        (3, "cls", 3),
        (np.int64(3), "cls", 3),
        (torch.tensor(3), "cls", 3),
        (b'{"kind": 3}', "json:kind", 3),
        ({"kind": 3}, "json:kind", 3),
        ({"kind": [0.5, 2.0]}, "json:kind", [0.5, 2.0]),
        (np.array([0.5, 2.0]), "cls", [0.5, 2.0]),
        (torch.tensor([0.5, 2.0]), "cls", [0.5, 2.0]),
    ]
    for value, label, expected in members:
        name = str(label).partition(":")[0]
        (batch,) = pack_stream([{"png": flat(8, 8), name: value}], PACKING, batch_size=1, label=label)
        assert batch.labels[0, 0].tolist() == expected
        assert batch.labels.dtype == (torch.float32 if isinstance(expected, list) else torch.int64)
        if ":" not in str(label):
            (batch,) = pack_stream([(flat(8, 8), value)], PACKING, batch_size=1)
            assert batch.labels[0, 0].tolist() == expected


def test_known_class_names_are_mapped_and_others_refused() -> None:
    samples = [{"png": flat(8, 8), "cls": name} for name in (b"cat", "dog", 0)]
    (batch,) = pack_stream(samples, PACKING, batch_size=1, label="cls", classes=["dog", "cat"])
    assert batch.labels[0, :3].tolist() == [1, 0, 0]
    for value, reason in ((b"cow", "label 'cow'"), (2, "label 2 is not among the 2 classes")):
        samples = [{"__key__": "k7", "png": flat(8, 8), "cls": value}]
        with pytest.raises(ValueError, match=reason) as caught:
            list(pack_stream(samples, PACKING, batch_size=1, label="cls", classes=["dog", "cat"]))
        assert caught.value.__notes__ == ["raised for the label of the sample with key 'k7'"]


def test_callable_label_gets_the_sample_and_its_errors_are_raised() -> None:
    samples = [{"__key__": f"{i:02d}", "png": flat(8, 8), "width": 5} for i in range(4)]
    (batch,) = pack_stream(
        samples, PACKING, batch_size=1, label=lambda sample: int(sample["__key__"]) * sample["width"]
    )
    assert batch.labels[batch.image_mask].tolist() == [0, 5, 10, 15]
    with pytest.raises(ZeroDivisionError) as caught:
        list(pack_stream(samples, PACKING, batch_size=1, label=lambda sample: 1 // 0))
    assert caught.value.__notes__ == ["raised for the label of the sample with key '00'"]


def test_samples_without_a_label_are_counted() -> None:
    samples = [{"png": flat(8, 8)} | ({"cls": b"1"} if i % 3 else {}) for i in range(9)]
    stream = pack_stream(samples, PACKING, batch_size=1, label="cls")
    labels = torch.cat([batch.labels[batch.image_mask] for batch in stream]).tolist()
    assert labels == [-100, 1, 1] * 3
    assert stream.stats()["without_label"] == 3
    targets = [{"png": flat(8, 8)}, {"png": flat(8, 8), "npy": np.array([1.0, 2.0])}]
    (batch,) = pack_stream(targets, PACKING, batch_size=1, label="npy")
    assert torch.isnan(batch.labels[0, 0]).all()
    assert batch.labels[0, 1].tolist() == [1, 2]


def test_labels_of_two_shapes_are_refused() -> None:
    pairs = [(flat(8, 8), [0.5]), (flat(8, 8), 3)]
    with pytest.raises(ValueError, match=r"label of '1' has shape \(\), the labels before it \(1,\)"):
        list(pack_stream(pairs, PACKING, batch_size=1))
    # The first batch fixes the kind of label.
    late = [*[{"png": flat(64, 64)}] * 40, {"png": flat(8, 8), "npy": np.array([0.5])}]
    stream = pack_stream(late, PACKING.replace(lookahead=1), batch_size=1, label="npy", num_threads=0)
    assert next(stream).labels.dtype == torch.int64
    with pytest.raises(ValueError, match=r"label of '40' has shape \(1,\), the labels before it \(\)"):
        list(stream)
