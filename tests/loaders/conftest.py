"""Data sets of drawn images, checks of batches made from them, and photographs beside the checkout."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchnpack.loaders import Index, Job, scan
from patchnpack.packer import PackedBatch, Packing
from tests.images import draw_image, encode_image, read_tar, rewrite_tar, write_tar
from tests.loaders.loading import decoding_threads
from tests.loaders.prepacking.folders import PACKING

torch.set_num_threads(1)

_CLOTHING = Path(__file__).resolve().parents[3] / "shared" / "data" / "clothing"

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]


class Drawn:
    """A small data set of drawn images: its shards, and the pixels, label and text of each key."""

    def __init__(self, folder: Path, counts: Sequence[int], *, seed: int = 0, kinds: Sequence[str] = ("jpg", "png")):
        self.folder = folder
        self.shards: list[str] = []
        self.keys: list[str] = []
        self.pixels: dict[str, np.ndarray] = {}
        self.labels: dict[str, int] = {}
        self.texts: dict[str, str] = {}
        rng = np.random.default_rng(seed)
        for s, count in enumerate(counts):
            members: list[tuple[str, bytes]] = []
            for i in range(count):
                key = f"s{s}i{i:03d}"
                image = draw_image(int(rng.integers(8, 60)), int(rng.integers(8, 60)), seed=len(self.keys))
                kind = kinds[len(self.keys) % len(kinds)]
                data = encode_image(image, "JPEG" if kind == "jpg" else "PNG")
                self.pixels[key] = np.asarray(Image.open(io.BytesIO(data)))
                self.labels[key] = int(rng.integers(10))
                self.texts[key] = f"the text of {key}"
                members += [(f"{key}.{kind}", data), (f"{key}.cls", str(self.labels[key]).encode())]
                members.append((f"{key}.txt", self.texts[key].encode()))
                self.keys.append(key)
            self.shards.append(write_tar(folder / f"drawn-{s:03d}.tar", members))

    def rewrite(self, change: Mapping[str, bytes | None]) -> None:
        """Replace the bytes of members by name; None removes a member."""
        for shard in self.shards:
            rewrite_tar(shard, change)

    def damage(self, truncated: Sequence[str] = (), unreadable: Sequence[str] = (), *, nbytes: int = 40) -> None:
        """Cut the last `nbytes` off the images of some keys, and overwrite the headers of others."""
        change: dict[str, bytes | None] = {}
        for name, data in (member for shard in self.shards for member in read_tar(shard)):
            key, _, extension = name.partition(".")
            if extension in ("jpg", "png") and key in truncated:
                change[name] = data[:-nbytes]
            if extension in ("jpg", "png") and key in unreadable:
                change[name] = b"no image"
        self.rewrite(change)


def contents(batch: PackedBatch) -> tuple[object, ...]:
    """All contents of a batch as bytes and lists; equal values mean batches that are equal bit for bit."""
    tensors = {
        name: (value.dtype, tuple(value.shape), value.numpy().tobytes())
        for name, value in batch.to_dict().items()
        if isinstance(value, torch.Tensor)
    }
    return tensors, batch.keys, batch.extras, batch.lengths, batch.step, batch.epoch, batch.position


def check_batch(batch: PackedBatch, drawn: Drawn, index: Index, packing: Packing, label: bool = True) -> None:
    """Assert that each image of the batch has the pixels, label, text and metadata of its key."""
    P = packing.patch_size
    segments, mask = batch.segment_ids.numpy(), batch.image_mask.numpy()
    assert not batch.patches.numpy()[segments == 0].any()
    assert not batch.coords.numpy()[segments == 0].any()
    assert not batch.grids.numpy()[~mask].any()
    for column in (batch.image_sizes, batch.boxes, batch.sizes):
        assert not column.numpy()[~mask].any()
    assert not batch.flipped.any()
    assert (batch.rows.numpy()[~mask] == -1).all()
    assert (batch.labels.numpy()[~mask] == -100).all()
    assert [len(keys) for keys in batch.keys] == mask.sum(1).tolist()
    for b in range(len(segments)):
        count = len(batch.keys[b])
        assert mask[b].tolist() == [j < count for j in range(packing.max_images)]
        numbers = segments[b][segments[b] > 0]
        assert sorted(set(numbers.tolist())) == list(range(1, count + 1))
        assert (np.diff(numbers) >= 0).all()  # contiguous and in order, with any padding between
    images = iter(batch.images())
    for b, keys in enumerate(batch.keys):
        for j, key in enumerate(keys):
            image, pixels = next(images), drawn.pixels[key]
            height, width, _ = pixels.shape
            assert image.key == key == index.keys[int(batch.rows[b, j])]
            assert image.label == (drawn.labels[key] if label else -100)
            assert image.grid == (-(-width // P), -(-height // P)) == tuple(batch.grids[b, j].tolist())
            assert batch.image_sizes[b, j].tolist() == batch.sizes[b, j].tolist() == [width, height]
            assert batch.boxes[b, j].tolist() == [0, 0, width, height]
            canvas = image.pixels()
            assert np.array_equal(canvas[:height, :width], pixels), key
            assert not canvas[height:].any()
            assert not canvas[:, width:].any()
            for extension, values in batch.extras.items():
                assert extension == "txt"
                assert values[b][j] == drawn.texts[key]


@pytest.fixture(scope="session", name="contents")
def _contents() -> Callable[[PackedBatch], tuple[object, ...]]:
    return contents


@pytest.fixture(scope="session", name="check_batch")
def _check_batch() -> Callable[..., None]:
    return check_batch


@pytest.fixture(scope="session", name="draw_image")
def _draw_image() -> Draw:
    return draw_image


@pytest.fixture(scope="session", name="encode_image")
def _encode_image() -> Encode:
    return encode_image


@pytest.fixture(scope="session", name="write_tar")
def _write_tar() -> Callable[..., str]:
    return write_tar


@pytest.fixture
def make_drawn(tmp_path: Path) -> Callable[..., Drawn]:
    """Makes a `Drawn` data set in the test's folder."""
    return lambda counts, **options: Drawn(tmp_path, counts, **options)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """60 images in 6 shards of unequal size, one of them empty. Tests must not change it."""
    return Drawn(tmp_path_factory.mktemp("drawn"), (17, 3, 0, 20, 1, 19))


@pytest.fixture(scope="module")
def index(drawn: Drawn) -> Index:
    """The index of `drawn`."""
    return scan(drawn.shards)


@pytest.fixture
def packed(index: Index, tmp_path: Path) -> Path:
    """An image store of `drawn`."""
    Job(source=index, out=str(tmp_path / "packed"), packing=PACKING, part_packs=3, label="cls").run()
    return tmp_path / "packed"


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    """Check that the test leaves no decoding thread behind."""
    yield
    if decoding_threads():
        gc.collect()
    assert not decoding_threads()


@pytest.fixture(scope="session")
def clothing() -> str:
    """The folder of the clothing photographs."""
    if not _CLOTHING.is_dir():
        pytest.skip("the clothing photographs are not in ../shared/data/clothing beside the checkout")
    return str(_CLOTHING)
