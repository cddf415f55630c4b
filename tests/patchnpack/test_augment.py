from __future__ import annotations

import pickle
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from patchnpack.augment import OPERATIONS, Compose, RandAugment, from_pil, operate, parse_augment
from patchnpack.loaders import PackedImageLoader
from patchnpack.packer import Packing
from tests.images import draw_image, encode_image, write_tar


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
    both = pickle.loads(pickle.dumps(Compose([RandAugment(1, 3), RandAugment(1, 9)])))  # noqa: S301
    rng = np.random.default_rng(3)
    expected = RandAugment(1, 9)(RandAugment(1, 3)(image, rng), rng)
    assert (both(image, np.random.default_rng(3)) == expected).all()


def test_invalid_images_and_texts_raise(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"the image has 4 channels"):
        RandAugment()(np.zeros((2, 2, 4), np.uint8), np.random.default_rng(0))
    for text in ("2", "2:11", "0:3", "x:1", "2:"):
        with pytest.raises(ValueError, match=rf"augment is '{text}'; it must be COUNT:MAGNITUDE, such as 2:9"):
            parse_augment(text)
    assert parse_augment("") is None


# Transforms of PIL images, which draw from global generators


def of_python(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(random.uniform(0.5, 1.5))


def of_numpy(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Contrast(picture).enhance(np.random.uniform(0.5, 1.5))  # noqa: NPY002


def of_torch(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Color(picture).enhance(float(torch.empty(1).uniform_(0.5, 1.5)))


def of_all(picture: Image.Image) -> Image.Image:
    return of_torch(of_numpy(of_python(picture)))


def global_draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@pytest.mark.parametrize("transform", [of_python, of_numpy, of_torch, of_all])
def test_from_pil_depends_on_the_generator_alone(
    transform: Callable[[Image.Image], Image.Image], image: np.ndarray
) -> None:
    outs: list[np.ndarray] = []
    for seed in (1, 1, *range(2, 12)):
        seed_all(len(outs))
        outs.append(from_pil(transform)(image, np.random.default_rng(seed)))
    assert (outs[0] == outs[1]).all()
    assert len({out.tobytes() for out in outs}) == 11


def test_from_pil_leaves_the_global_generators_as_they_were_also_after_an_error(image: np.ndarray) -> None:
    def fails(picture: Image.Image) -> Image.Image:
        of_all(picture)
        raise LookupError("a bug of the user's")

    seed_all(5)
    expected = global_draws()
    seed_all(5)
    from_pil(of_all)(image, np.random.default_rng(0))
    with pytest.raises(LookupError):
        from_pil(fails)(image, np.random.default_rng(0))
    assert global_draws() == expected


def test_from_pil_in_many_threads_gives_what_one_thread_gives(image: np.ndarray) -> None:
    transform = from_pil(of_all)
    one = [transform(image, np.random.default_rng(seed)).tobytes() for seed in range(200)]
    with ThreadPoolExecutor(8) as pool:
        many = pool.map(lambda seed: transform(image, np.random.default_rng(seed)).tobytes(), range(200))
        assert list(many) == one


def test_from_pil_may_be_nested_and_pickled(image: np.ndarray) -> None:
    transform = pickle.loads(pickle.dumps(from_pil(of_all)))  # noqa: S301 - made in this line
    out = from_pil(lambda picture: transform(np.asarray(picture), np.random.default_rng(1)))(
        image, np.random.default_rng(2)
    )
    assert (out == transform(image, np.random.default_rng(1))).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_from_pil_takes_what_a_transform_may_return(channels: int, image: np.ndarray) -> None:
    image = np.dstack([image, image[..., :1]])[..., :channels]
    rng = np.random.default_rng(0)
    for transform in (
        ImageOps.flip,
        lambda picture: np.asarray(picture)[::-1],
        lambda picture: torch.from_numpy(np.array(picture)[::-1].reshape(20, 30, -1).copy()).permute(2, 0, 1),
    ):
        assert (from_pil(transform)(image, rng) == image[::-1]).all()
    grey = from_pil(lambda picture: picture.convert("L"))(image, rng)
    assert grey.shape == image.shape
    assert grey.dtype == np.uint8


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (
            lambda picture: picture.resize((8, 6)),
            "8x6 pixels for an image of 30x20; .* leave out Resize, crops",
        ),
        (lambda picture: picture.rotate(90, expand=True), "20x30 pixels for an image of 30x20"),
        (
            lambda picture: torch.rand(3, 20, 30),
            r"a torch.Tensor of float32 \(3, 20, 30\); it must .*: leave out ToTensor, Norm",
        ),
        (lambda picture: np.asarray(picture) / 255, r"a numpy.ndarray of float64 \(20, 30, 3\)"),
        (lambda picture: np.asarray(picture)[..., 0], r"a numpy.ndarray of uint8 \(20, 30\); it must return"),
        (lambda picture: None, r"a NoneType of object \(\)"),
    ],
)
def test_from_pil_refuses_another_size_and_what_is_no_image(transform: Any, says: str, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"^<lambda> returned {says}"):
        from_pil(transform)(image, np.random.default_rng(0))


@pytest.mark.parametrize("transform", [None, "flip", ImageEnhance.Color])
def test_from_pil_takes_functions_only(transform: Any) -> None:
    with pytest.raises(ValueError, match="it must be a function of a PIL image, such as"):
        from_pil(transform)


@pytest.fixture
def shard(tmp_path: Path) -> str:
    members = [(f"{i:02d}.jpg", encode_image(draw_image(32, 24, seed=i))) for i in range(40)]
    return write_tar(tmp_path / "a.tar", members)


def batches(shard: str, **options: Any) -> dict[int, bytes]:
    """The pixels of each row."""
    given = {"batch_size": 1, "shuffle": True, "transform": from_pil(of_all), **options}
    loader = PackedImageLoader(shard, Packing(seq_len=64, patch_size=8), **given)
    return rows_of(loader)


def rows_of(loader: Any) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for batch in loader:
        found |= dict(
            zip(batch.rows[batch.image_mask].tolist(), (i.pixels().tobytes() for i in batch.images()), strict=True)
        )
    return found


def test_batches_from_pil_are_the_same_for_threads_ranks_workers_and_a_resume(shard: str) -> None:
    whole = batches(shard, num_threads=1)
    assert len(whole) == 40
    assert whole == batches(shard, num_threads=4)
    assert whole == batches(shard, rank=0, world_size=2) | batches(shard, rank=1, world_size=2)
    first = PackedImageLoader(
        shard, Packing(seq_len=64, patch_size=8), batch_size=1, shuffle=True, transform=from_pil(of_all)
    )
    begun = iter(first)
    next(begun)
    state = first.state_dict()
    begun.close()  # type: ignore[attr-defined]  # it is a generator
    first.load_state_dict(state)
    rest = rows_of(first)
    assert 0 < len(rest) < 40
    assert rest.items() <= whole.items()
    dataset = PackedImageLoader(
        shard, Packing(seq_len=64, patch_size=8), batch_size=1, shuffle=True, transform=from_pil(of_all)
    ).as_dataset()
    workers = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert rows_of(workers) == whole


def test_a_lock_that_another_thread_holds_does_not_stop_a_forked_worker(shard: str) -> None:
    held, done = threading.Event(), threading.Event()

    def waits(picture: Image.Image) -> Image.Image:
        held.set()
        done.wait(60)
        return picture

    thread = threading.Thread(target=lambda: from_pil(waits)(np.zeros((8, 8, 3), np.uint8), np.random.default_rng(0)))
    thread.start()
    try:
        held.wait(60)
        dataset = PackedImageLoader(
            shard, Packing(seq_len=64, patch_size=8), batch_size=1, transform=from_pil(of_all)
        ).as_dataset()
        workers = torch.utils.data.DataLoader(
            dataset, batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60
        )
        assert len(rows_of(workers)) == 40
    finally:
        done.set()
        thread.join()
