from __future__ import annotations

import pickle

import numpy as np
import pytest

from patchnpack.augment import OPERATIONS, Compose, RandAugment, mirror_half, operate, parse_augment


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0.0, 5.0, 10.0])
def test_randaugment_keeps_shape_and_dtype(channels: int, magnitude: float, image: np.ndarray) -> None:
    for seed in range(20):
        out = RandAugment(3, magnitude)(image[..., :channels], np.random.default_rng(seed))
        assert out.shape == (20, 30, channels)
        assert out.dtype == np.uint8


def test_randaugment_depends_only_on_the_generator(image: np.ndarray) -> None:
    outs = [RandAugment()(image, np.random.default_rng(seed)) for seed in (1, 1, *range(2, 12))]
    assert (outs[0] == outs[1]).all()
    assert len({out.tobytes() for out in outs}) > 6


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_except_identity_changes_the_image_at_full_strength(name: str, image: np.ndarray) -> None:
    from PIL import Image

    picture = Image.fromarray(image // 2 + 20)
    changed = np.asarray(operate(picture, name, 1.0)) != np.asarray(picture)
    assert changed.any() == (name != "identity")


def test_translation_shifts_the_image_and_fills_with_grey(image: np.ndarray) -> None:
    from PIL import Image

    moved = np.asarray(operate(Image.fromarray(image), "translate_x", 1.0))
    assert (moved[:, :19] == image[:, 10:29]).all()
    assert (moved[:, 21:] == 128).all()


def test_compose_applies_transforms_in_order_after_pickling(image: np.ndarray) -> None:
    both = pickle.loads(pickle.dumps(Compose([mirror_half, RandAugment(1, 9)])))  # noqa: S301
    rng = np.random.default_rng(3)
    expected = RandAugment(1, 9)(np.ascontiguousarray(mirror_half(image, rng)), rng)
    assert (both(image, np.random.default_rng(3)) == expected).all()


def test_invalid_images_and_texts_raise(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"the image has 4 channels"):
        RandAugment()(np.zeros((2, 2, 4), np.uint8), np.random.default_rng(0))
    for text in ("2", "2:11", "0:3", "x:1", "2:"):
        with pytest.raises(ValueError, match=rf"augment is '{text}'; it must be COUNT:MAGNITUDE, such as 2:9"):
            parse_augment(text)
    assert parse_augment("") is None
