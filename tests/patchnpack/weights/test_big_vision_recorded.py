"""Compare with outputs that big_vision itself computed from drawn weights, recorded beside the checkout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from patchnpack import Packing, pack_stream
from patchnpack.models import NaViT
from patchnpack.weights import from_big_vision, open_model
from tests.closeness import assert_near, difference

RECORDED = Path(__file__).resolve().parents[4] / "shared" / "golden"
TOLERANCE = 2e-5  # of the largest
FLEXIBLE = (8, 12, 16, 24, 32, 48)

Arrays = dict[str, np.ndarray]


def recorded(name: str) -> Arrays:
    path = RECORDED / f"bigvision_{name}.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent: outputs recorded with big_vision lie beside the checkout, if at all")
    with np.load(path) as arrays:
        return dict(arrays)


def model_of(arrays: Arrays) -> NaViT:
    return from_big_vision({name: value for name, value in arrays.items() if name.startswith("params/")})


@torch.no_grad()
def outputs_of(model: NaViT, images: list[np.ndarray], patch_size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits (images, classes), and of each image the tokens after the last norm, (n, D)."""
    samples, packing = (
        [(image, place) for place, image in enumerate(images)],
        Packing(seq_len=512, patch_size=patch_size),
    )
    [batch] = pack_stream(samples, packing, batch_size=1, num_threads=0)
    order, features = batch.labels[batch.image_mask].argsort(), model.features(batch)
    parts = features.tokens.split(features.cu_seqlens.diff().tolist())
    return model(batch)[batch.image_mask][order].numpy(), [parts[i].numpy() for i in order.tolist()]


@pytest.mark.parametrize("pool", ["map", "gap"])
def test_naflex_matches_at_every_grid(pool: str) -> None:
    arrays = recorded(f"naflex_{pool}")
    images = [arrays[name] for name in sorted(arrays) if name.startswith("image_")]
    logits, tokens = outputs_of(model_of(arrays), images, 16)
    valid = [row[: len(part)] for row, part in zip(arrays["encoded"], tokens, strict=True)]
    print(f"naflex_vit, {pool}: {difference(logits, arrays['logits']):.1e}, tokens {difference(tokens, valid):.1e}")
    assert_near(logits, arrays["logits"], TOLERANCE)
    assert_near(tokens, valid, TOLERANCE)


def test_a_plain_vit_matches() -> None:
    arrays = recorded("vit_map")
    logits, tokens = outputs_of(model_of(arrays), list(arrays["images"]), 16)
    wanted = list(arrays["encoded"])
    print(f"vit, map: {difference(logits, arrays['logits']):.1e}, tokens {difference(tokens, wanted):.1e}")
    assert_near(logits, arrays["logits"], TOLERANCE)
    assert_near(tokens, wanted, TOLERANCE)


@pytest.mark.parametrize("patch_size", FLEXIBLE)
def test_flexivit_matches_at_six_patch_sizes(patch_size: int) -> None:
    arrays = recorded("flexivit_gap")
    logits, _ = outputs_of(model_of(arrays), list(arrays["images"]), patch_size)
    wanted = arrays[f"logits_{patch_size}"]
    print(f"flexivit, {patch_size}: logits differ by {difference(logits, wanted):.1e} of the largest")
    assert_near(logits, wanted, TOLERANCE)


def test_the_file_opens_without_a_word_about_its_library(tmp_path: Path) -> None:
    arrays = recorded("naflex_map")
    weights = {name: value for name, value in arrays.items() if name.startswith("params/")}
    np.savez(tmp_path / "model.npz", **weights)  # type: ignore[arg-type]
    images = [arrays[name] for name in sorted(arrays) if name.startswith("image_")]
    assert_near(outputs_of(open_model(tmp_path / "model.npz"), images, 16)[0], arrays["logits"], TOLERANCE)
