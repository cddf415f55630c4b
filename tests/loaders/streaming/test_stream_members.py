"""Streams whose samples hold several images: members, lists, pages and frames, and the views that are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchnpack import ComplexityDrop, Frames, RandomResizedCrop, Views
from patchnpack.loaders import ErrorPolicy, PackedImageLoader, pack_stream
from patchnpack.packer import Packing
from tests.images import draw_image, encode_image, write_tar
from tests.loaders.conftest import contents
from tests.loaders.streaming.documents import PACKING, by_members, padded, page, pages_of, pixels_in, samples_in

COUNT = 60
ALGORITHMS = ("next_fit", "first_fit", "best_fit_decreasing", "largest_fit", "subset_sum", "priced", "auto")


def stream(samples: Any, packing: Packing = PACKING, **options: Any) -> Any:
    given: dict[str, Any] = {"batch_size": 2, "label": "cls", "sample": "members", "num_threads": 1} | options
    return pack_stream(samples, packing, **given)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_sample_is_in_one_pack_with_all_its_members_in_natural_order(algorithm: Any) -> None:
    one = stream(by_members(COUNT), PACKING.replace(algorithm=algorithm))
    batches = list(one)
    found = sorted(samples_in(batches), key=lambda sample: sample[0][2])
    assert found == [[(f"doc{n}", i, n) for i in range(pages_of(n))] for n in range(COUNT)]
    for (number, i), pixels in pixels_in(batches).items():  # p8, p9, p10, p11
        assert np.array_equal(pixels, padded(page(number, i)[1]))
    stats = one.stats()
    assert (stats["samples"], stats["images"]) == (COUNT, sum(map(pages_of, range(COUNT))))


def test_batches_do_not_depend_on_threads() -> None:
    one, four = (list(map(contents, stream(by_members(COUNT), num_threads=n))) for n in (1, 4))
    assert one == four


def test_rows_number_the_items_and_all_images_of_one_share_its_row() -> None:
    for batch in stream(by_members(COUNT)):
        for row, label in zip(batch.rows[batch.image_mask], batch.labels[batch.image_mask], strict=True):
            assert row == label


@pytest.mark.parametrize("kind", ["list in a pair", "list in a dict", "frames of an array", "PIL images"])
def test_images_in_a_list_or_in_an_array_are_one_sample(kind: str) -> None:
    clips = [np.stack([np.asarray(draw_image(16, 24, seed=9 * n + i)) for i in range(1 + n % 3)]) for n in range(9)]
    values: dict[str, Any] = {
        "list in a pair": [(list(clip), n) for n, clip in enumerate(clips)],
        "list in a dict": [
            {"clip": [encode_image(each, "PNG") for each in clip], "cls": n} for n, clip in enumerate(clips)
        ],
        "frames of an array": [{"clip": clip, "cls": n} for n, clip in enumerate(clips)],
        "PIL images": [{"clip": list(map(Image.fromarray, clip)), "cls": n} for n, clip in enumerate(clips)],
    }
    label = None if kind == "list in a pair" else "cls"
    pixels = pixels_in(stream(values[kind], image="clip", label=label))
    assert sorted(pixels) == [(n, i) for n, clip in enumerate(clips) for i in range(len(clip))]
    assert all(np.array_equal(pixels[n, i], clips[n][i]) for n, i in pixels)


def test_all_pages_of_a_tiff_and_all_frames_of_an_animation_are_one_sample() -> None:
    pages = [draw_image(16, 24, seed=1), draw_image(24, 16, seed=2), draw_image(8, 8, seed=3)]
    frames = [draw_image(16, 16, seed=i) for i in range(4)]
    samples = [
        {"tiff": encode_image(pages[0], "TIFF", save_all=True, append_images=pages[1:]), "cls": 0},
        {"png": encode_image(frames[0], "PNG", save_all=True, append_images=frames[1:]), "cls": 1},
    ]
    batches = list(stream(samples, image="tiff;png"))
    assert [len(sample) for sample in samples_in(batches)] == [3, 4]
    pixels = pixels_in(batches)
    for label, images in enumerate((pages, frames)):
        for i, image in enumerate(images):
            assert np.array_equal(pixels[label, i], np.asarray(image))


def test_chosen_frames_alone_are_used() -> None:
    batches = list(stream(by_members(COUNT), PACKING.replace(frames=Frames(2, "first", short="skip"))))
    found = sorted(samples_in(batches), key=lambda sample: sample[0][2])
    assert found == [[(f"doc{n}", i, n) for i in range(2)] for n in range(COUNT) if pages_of(n) >= 2]


def test_samples_with_too_few_frames_are_counted() -> None:
    one = stream(by_members(COUNT), PACKING.replace(frames=Frames(2, "first", short="skip")))
    list(one)
    few = sum(pages_of(n) < 2 for n in range(COUNT))
    assert (one.stats()["skipped"]["frames"], one.stats()["samples"]) == (few, COUNT - few)


def test_views_of_a_picture_are_images_of_its_sample() -> None:
    views = Views(
        (2, RandomResizedCrop(scale=(0.5, 1), max_tokens=6)), (2, RandomResizedCrop(scale=(0.1, 0.3), max_tokens=2))
    )
    pairs = [(np.asarray(draw_image(48, 32, seed=n)), n) for n in range(12)]
    once = list(stream(pairs, PACKING.replace(views=views), label=None, sample=None))
    assert sorted(samples_in(once)) == [[(str(n), i, n) for i in range(4)] for n in sorted(range(12), key=str)]
    again = list(stream(pairs, PACKING.replace(views=views), label=None, sample=None, num_threads=4))
    assert list(map(contents, once)) == list(map(contents, again))
    lengths = [length for batch in once for length in batch.lengths]
    assert all(length <= (6, 6, 2, 2)[i % 4] for i, length in enumerate(lengths))


@pytest.mark.parametrize("on_bad", ["sample", "image"])
@pytest.mark.parametrize("when", ["arriving", "decoding"])
def test_a_bad_page_leaves_out_its_sample_or_itself(on_bad: Any, when: str) -> None:
    pages = {(1, 0), (5, 2), (6, 1), (6, 2)}
    samples: list[dict[str, Any]] = list(by_members(COUNT, pages if when == "arriving" else ()))
    if when == "decoding":  # the header can be read, the pixels cannot
        for number, i in pages:
            name = f"p{8 + i}.png"
            samples[number][name] = samples[number][name][:60]
    assert all(i < pages_of(number) for number, i in pages)
    one = stream(samples, errors=ErrorPolicy(on_bad=on_bad))
    batches, stats = list(one), one.stats()
    expected = {n: [i for i in range(pages_of(n)) if (n, i) not in pages] for n in range(COUNT)}
    if on_bad == "sample":
        expected = {n: pages for n, pages in expected.items() if n not in (1, 5, 6)}
    found = {sample[0][2]: [frame for _, frame, _ in sample] for sample in samples_in(batches)}
    if when == "arriving":  # images are numbered among those that can be used
        expected = {n: list(range(len(pages))) for n, pages in expected.items()}
    assert found == expected
    total = sum(map(pages_of, range(COUNT)))
    assert stats["images"] + stats["bad_images"] + stats["left_out"] == total
    assert stats["samples"] + stats["bad_samples"] == COUNT
    assert stats["bad_images"] == len(stats["bad"]) == len(pages)
    assert [bad["row"] for bad in stats["bad"]] == [1, 5, 6, 6]


def test_a_sample_of_bad_pages_alone_is_lost_under_both_policies() -> None:
    bad = [(2, i) for i in range(pages_of(2))]
    for on_bad in ("sample", "image"):
        one = stream(by_members(COUNT, bad), errors=ErrorPolicy(on_bad=on_bad))
        assert 2 not in {sample[0][2] for sample in samples_in(one)}
        assert (one.stats()["bad_samples"], one.stats()["bad_images"], one.stats()["left_out"]) == (1, len(bad), 0)


def test_items_without_an_image_are_counted() -> None:
    samples = [{"__key__": "a", "cls": 1}, {"__key__": "b", "png": [], "cls": 1}, *by_members(3), {"png": [None]}]
    one = stream(samples)
    assert len(samples_in(one)) == 3
    assert one.stats()["without_image"] == 3


def test_a_list_of_images_without_sample_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"is a builtins.list; .* For lists of images give sample='members'"):
        list(stream([{"png": [page(0, 0)[0]], "cls": 1}], sample=None))


def test_options_that_contradict_members_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pages is 'error', .* and sample is 'members'"):
        stream([], pages="error")
    with pytest.raises(ValueError, match=r"sample is 'member'; did you mean 'members'\?"):
        stream([], sample="member")


def test_more_images_than_a_pack_holds_are_an_error_that_names_the_sample() -> None:
    clip = [(np.zeros((40, 8, 8, 3), np.uint8), 0)]
    with pytest.raises(ValueError, match="max_images"):
        list(stream(clip, PACKING.replace(max_images=8), label=None))


def test_one_image_per_sample_gives_what_it_gives_without_the_rule() -> None:
    samples = [{"__key__": str(n), "png": page(n, 0)[0], "cls": n} for n in range(40)]

    assert list(map(contents, stream(samples))) == list(map(contents, stream(samples, sample=None)))


def test_files_of_several_pages_have_the_drop_rates_that_a_loader_gives_them(tmp_path: Path) -> None:
    pages = [draw_image(80, 96, seed=1), draw_image(96, 40, seed=2), draw_image(96, 40, seed=3)]
    samples = [
        {"a.tiff": encode_image(pages[0], "TIFF", save_all=True, append_images=pages[1:]), "b.png": page(1, 1)[0]},
        {"a.png": encode_image(pages[1], "PNG", save_all=True, append_images=pages[2:])},
        {"a.png": page(2, 2)[0]},
    ]
    members = [(f"s{n}.{name}", data) for n, sample in enumerate(samples) for name, data in sample.items()]
    shard = write_tar(tmp_path / "a.tar", members)
    # Rates differ where bytes per pixel do, between 0.5 and 5.
    packing = PACKING.replace(seq_len=512, token_drop=ComplexityDrop(0.1, 0.9, 0.5, 5), fill="none")
    options: dict[str, Any] = {"batch_size": 1, "image": "tiff;png", "sample": "members"}
    streamed = pack_stream(({"__key__": f"s{n}", **sample} for n, sample in enumerate(samples)), packing, **options)
    kept = [
        sorted((image.key, image.grid, len(image.coords)) for batch in batches for image in batch.images())
        for batches in (streamed, PackedImageLoader(shard, packing, **options))
    ]
    assert len(kept[0]) == 7
    assert kept[0] == kept[1]
    assert len({round(tokens / (gw * gh), 1) for _, (gw, gh), tokens in kept[0]}) > 1
