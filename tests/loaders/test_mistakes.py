"""What users get wrong at the front door: each message names the value, what is expected, and a fix that works."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from patchnpack.loaders import ErrorPolicy, Mixture, PackedImageLoader, open_index, pack_stream
from patchnpack.packer import Packing
from tests.images import draw_image, encode_image, write_tar
from tests.loaders.loading import PACKING, keys_of

JPEG = encode_image(draw_image(32, 24))
DEEP = encode_image(np.arange(32 * 24, dtype=np.uint16).reshape(24, 32), "PNG")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: shards a.tar and b.tar, one of 16-bit images, and a dangling link."""
    monkeypatch.chdir(tmp_path)
    for shard in "ab":
        sample = [("jpg", JPEG), ("cls", b"1"), ("json", b'{"label": 1, "of": {"kind": 3, "a.b": 5}, "a.b": 4}')]
        write_tar(tmp_path / f"{shard}.tar", [(f"{shard}{i}.{ext}", data) for i in range(3) for ext, data in sample])
    write_tar(tmp_path / "deep.tar", [(f"{i}.png", DEEP) for i in range(3)])
    mixed = [*((f"{i}.png", DEEP) for i in range(3)), ("3.jpg", b"no image"), ("4.jpg", b"no image, either")]
    write_tar(tmp_path / "mixed.tar", mixed)
    os.symlink("/absent/x.tar", "dangling.tar")
    os.symlink("/absent", "dead")
    (tmp_path / "empty").mkdir()
    return tmp_path


def load(source: Any, **options: Any) -> PackedImageLoader:
    return PackedImageLoader(source, **{"packing": PACKING, "batch_size": 1, **options})


class Items(torch.utils.data.Dataset[Any]):
    """A data set that has no end for those who iterate over it by number."""

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        return np.zeros((16, 16, 3), np.uint8), number


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        raise AssertionError("nothing is read from a data set")


SOURCES: list[tuple[Any, str]] = [
    (None, "the source is None; give shards, such as 'train-{000000..000009}.tar', or a list of them"),
    (3, "the source is 3; give shards"),
    (b"a.tar", "the source is b'a.tar'; give shards"),
    ([1, 2], "item 0 of the source is 1; give shards"),
    ([["a.tar"]], "item 0 of the source is a list; give one flat list of shards"),
    ([("a.tar", 1)], "item 0 of the source is a tuple; for sources with weights give Mixture("),
    ([Mixture({"a": ("a.tar", 1)})], "give the Mixture alone, or several sources with weights in one Mixture"),
    ({"a": "a.tar"}, "the source is a dict, {'a': 'a.tar'}; for several sources with weights give Mixture("),
    ({"a.tar", "b.tar"}, "the source is a set, whose order changes from run to run; give a list: sorted(shards)"),
    ([], "the source is an empty list; give at least one shard"),
    ("", "the source is an empty string; give at least one shard"),
    ("empty", "'empty' holds no file, nor do its sub-folders"),
    ("nope", "shard or folder 'nope' does not exist (the working directory is "),
    ("nope.tar", "shard 'nope.tar' does not exist (the working directory is "),
    ("dangling.tar", "shard 'dangling.tar' is a link to '/absent/x.tar', which does not exist"),
    ("d*.tar", "shard 'dangling.tar' is a link to '/absent/x.tar', which does not exist"),
    ("dead/a.tar", "shard 'dead/a.tar' is below 'dead', a link to '/absent', which does not exist"),
    ("file:a.tar", "'file:a.tar' is the address of a local file; give its path: 'a.tar'"),
    ("file:///data/a.tar", "'file:///data/a.tar' is the address of a local file; give its path: '/data/a.tar'"),
    ("a.tar::b.tar", "names 2 shards in one text; give a list, ['a.tar', 'b.tar'], or on the command line a.tar b.tar"),
    ("a.tar,b.tar", "names 2 shards in one text; give a list, ['a.tar', 'b.tar']"),
    ("a.tar b.tar", "names 2 shards in one text; give a list, ['a.tar', 'b.tar']"),
    ("a.tar; b.tar", "names 2 shards in one text; give a list, ['a.tar', 'b.tar']"),
    ("s3://b/a.tar::s3://b/b.tar", "names 2 shards in one text; give a list, ['s3://b/a.tar', 's3://b/b.tar']"),
    ("simplecache::s3://b/a.tar", "chains file systems; give 's3://b/a.tar' alone, which is cached anyway"),
    (Path("s3://b/a.tar"), "'s3://b/a.tar' lost a slash and became 's3:/b/a.tar', as pathlib.Path makes of it"),
    ("https:/host/a.tar", "'https://host/a.tar' lost a slash and became 'https:/host/a.tar'"),
    (Items(), "the data set Items has no length; give it __len__, or pass it to pack_stream("),
    (Endless(), "the source is a Endless, which can only be iterated: pack_stream("),
    (
        torch.utils.data.DataLoader(Endless()),
        "the source is a DataLoader, which can only be iterated: pack_stream(",
    ),
    (
        webdataset.WebDataset("a.tar", shardshuffle=False),
        "the source is a WebDataset; give the names of its shards, or pack its samples as they come: pack_stream(",
    ),
]


@pytest.mark.parametrize(("source", "says"), SOURCES, ids=[f"{i}" for i in range(len(SOURCES))])
def test_a_wrong_source_is_named_with_what_to_give_instead(source: Any, says: str, here: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(says)):
        load(source)


@pytest.mark.parametrize(
    "source",
    [
        ["a.tar", Path("b.tar")],
        ("a.tar", "b.tar"),
        (name for name in ("a.tar", "b.tar")),
        np.array(["a.tar", "b.tar"]),
        {"a.tar": 1, "b.tar": 2}.keys(),
        "[ab].tar",
        "{a,b}.tar",
    ],
)
def test_every_ordered_collection_of_names_is_a_source(source: Any, here: Path) -> None:
    assert load(source).index.keys[:] == ["a0", "a1", "a2", "b0", "b1", "b2"]


def test_a_column_of_images_may_have_a_space_in_its_name() -> None:
    (batch,) = pack_stream([{"my image": JPEG}], PACKING, batch_size=1, image="absent; my image")
    assert batch.num_images == 1


def test_names_that_hold_the_separators_themselves_are_names(here: Path) -> None:
    for name in ("a.tar,b.tar", "a.tar b.tar", "a.tar::b.tar", "s3:x.tar"):
        os.link("a.tar", name)
        assert len(load(name).index) == 3


def test_what_a_message_says_of_a_torch_data_set_works() -> None:
    pairs = (Items()[number] for number in range(3))
    (batch,) = pack_stream(pairs, PACKING, batch_size=1)
    assert batch.labels[batch.image_mask].tolist() == [0, 1, 2]


def test_the_index_of_a_data_set_is_an_error_that_names_the_loader() -> None:
    with pytest.raises(ValueError, match=r"the source is a .*Items, not the name of shards; .* to PackedImageLoader"):
        open_index(Items())  # type: ignore[arg-type]


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"packing": 1024}, "packing is 1024; give Packing(seq_len=...)"),
    ({"packing": Packing}, "packing is the class Packing; give Packing(seq_len=...)"),
    ({"batch_size": 2.0}, "batch_size is 2.0; it must be a whole number: 2"),
    ({"batch_size": "2"}, "batch_size is '2'; it must be a whole number: 2"),
    ({"batch_size": None}, "batch_size is None; it must be a whole number"),
    (
        {"shuffle": 1000},
        "shuffle is 1000; it must be True or False: shuffle_window is how many shards are shuffled tog",
    ),
    ({"shuffle": "yes"}, "shuffle is 'yes'; it must be True or False"),
    ({"repeat": 3}, "repeat is 3; it must be True or False: with True, epochs follow each other without end"),
    ({"seed": None}, "seed is None; it must be a whole number"),
    ({"seed": torch.tensor(1)}, "seed is tensor(1); it must be a whole number"),
    (
        {"image": ["jpg", ".png"]},
        "image is ['jpg', '.png']; give extensions as one text, separated by semicolons: 'jpg",
    ),
    ({"image": "jpg,png"}, "image is 'jpg,png'; give extensions as one text, separated by semicolons: 'jpg;png'"),
    ({"image": "*.jpg"}, "image is '*.jpg'; give extensions as one text, separated by semicolons: 'jpg'"),
    ({"image": ""}, "image is ''; give extensions as one text"),
    ({"label": ["cls"]}, "label is ['cls']; it must name one member such as 'cls' or 'json:FIELD', for example 'cls'"),
    ({"label": 3}, "label is 3; it must name one member"),
    ({"label": True}, "label is True; it must name one member"),
    ({"label": ""}, "label is ''; it must name one member"),
    ({"label": "json"}, "label is 'json'; name the field that holds the label: 'json:FIELD'"),
    ({"label": "json:klass"}, "whose .json members have the fields label, of.FIELD, a.b; their members are"),
    ({"label": "json:of.klass"}, "label 'json:of.klass' is absent from all 3 samples, whose .json members have the"),
    ({"label": "cls", "classes": 10}, "classes is 10; give the names of the classes as a list"),
    ({"label": "cls", "classes": {"a", "b"}}, "give the names of the classes as a list"),
    ({"label": "cls", "classes": [0, 1]}, "classes holds 0; each class is named by its text, such as '0'"),
    (
        {"label": "cls", "classes": {"a": "0"}},
        "the number of class 'a' in classes is '0'; it must be a whole number: 0",
    ),
    ({"label": "cls", "classes": {"a": -1}}, "the number of class 'a' in classes is -1; it must be at least 0"),
    ({"label": "cls", "classes": "empty"}, "classes is 'empty', a folder; give a file with one class name per line"),
    (
        {"label": "cls", "classes": "a,b"},
        "classes file 'a,b' does not exist; give a file with one class name per line, or",
    ),
    ({"extras": None}, "extras is None; give a list of extensions such as ['txt'], or leave it out"),
    ({"extras": [1]}, "extras holds 1; each must be the extension of a member, such as 'txt'"),
    (
        {"extras": ["json:of.kind"]},
        "an extra is a whole member: give 'json', and take 'of.kind' from the value in batch.",
    ),
    ({"where": [True] * 3}, "where is [True, True, True]; it must be a function from an Index to one bool per row"),
    (
        {"decode": lambda data, size: data},
        "decode is <lambda>(data, size); it must be a function from encoded bytes to",
    ),
    ({"index": True}, "index is True; give the path or address of an index file, or an Index"),
    ({"index": "file:i.parquet"}, "'file:i.parquet' is the address of a local file; give its path: 'i.parquet'"),
    ({"storage_options": "anon=true"}, "storage_options is 'anon=true'; give a dict, for example {'anon': True}"),
    ({"cache_dir": 3}, "cache_dir is 3; give the path of a folder"),
    ({"cache_limit": 1e9}, "cache_limit is 1000000000.0; it must be a whole number: 1000000000"),
    ({"even": True}, "even is True; it must be one of 'pad', 'drop'"),
    ({"rank": "0", "world_size": 2}, "rank is '0'; it must be a whole number: 0"),
    ({"errors": "skip"}, "errors is 'skip'; give ErrorPolicy(on_error=...)"),
]


@pytest.mark.parametrize(("options", "says"), OPTIONS, ids=[f"{'+'.join(o)}{i}" for i, (o, _) in enumerate(OPTIONS)])
def test_a_wrong_option_is_named_with_its_value_and_a_fix(options: dict[str, Any], says: str, here: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(says)):
        load("a.tar", **options)


def test_a_label_may_be_a_path_into_json_and_a_field_of_that_name_comes_first(here: Path) -> None:
    for label, number in (("json:of.kind", 3), ("json:a.b", 4), ("json:label", 1)):
        (batch,) = load("a.tar", label=label)
        assert batch.labels[batch.image_mask].tolist() == [number] * 3
        sample = {"jpg": JPEG, "json": {"label": 1, "of": {"kind": 3}, "a.b": 4}}
        (batch,) = pack_stream([sample], PACKING, batch_size=1, label=label)
        assert batch.labels[batch.image_mask].tolist() == [number]


def test_a_whole_json_member_holds_the_field_that_an_extra_asked_for(here: Path) -> None:
    (batch,) = load("a.tar", extras=["json"])
    assert [record["of"]["kind"] for record in batch.extras["json"][0]] == [3, 3, 3]


STREAMS: list[tuple[Any, dict[str, Any], str]] = [
    (Items, {}, "samples is the class Items; it must be an iterable of samples"),
    (keys_of, {}, "samples is a function; it must be an iterable of samples"),
    ("a.tar", {}, "samples is a str; it must be an iterable of samples"),
    ([], {"packing": 64}, "packing is 64; give Packing(seq_len=...)"),
    ([], {"errors": "skip"}, "errors is 'skip'; give ErrorPolicy("),
    ([], {"seed": None}, "seed is None; it must be a whole number"),
    ([], {"drop_last": 2}, "drop_last is 2; it must be True or False"),
    ([], {"image": ["jpg"]}, "image is ['jpg']; give extensions as one"),
    ([], {"label": ["cls"]}, "label is ['cls']; it must name one"),
    ([], {"extras": "txt"}, "extras is 'txt'; give a list of extensions: ['txt']"),
]


@pytest.mark.parametrize(("samples", "options", "says"), STREAMS, ids=[f"{i}" for i in range(len(STREAMS))])
def test_a_wrong_argument_of_pack_stream_is_an_error_before_it_starts(
    samples: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        pack_stream(samples, batch_size=1, **options)


MIXTURES: list[tuple[Any, str]] = [
    ([("a.tar", 1)], "sources is [('a.tar', 1)]; give a dict {name: (shards, weight)}"),
    ({"a": "ab"}, "source 'a' is 'ab'; give (shards, weight)"),
    ({"a": 0.5}, "source 'a' is 0.5; give (shards, weight)"),
    ({"a": ("a.tar", "1")}, "the weight of 'a' is '1'; it must be a number above 0, in (shards, weight)"),
    ({"a": (1, "a.tar")}, "the weight of 'a' is 'a.tar'; it must be a number above 0, in (shards, weight)"),
    ({"a": ("a.tar", float("nan"))}, "the weight of 'a' is nan; it must be a number above 0"),
    ({"a": (Mixture({"b": ("b.tar", 1)}), 1)}, "source 'a' is a Mixture; name the sources inside it"),
]


@pytest.mark.parametrize(("sources", "says"), MIXTURES, ids=[f"{i}" for i in range(len(MIXTURES))])
def test_a_wrong_mixture_is_an_error_when_it_is_made(sources: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Mixture(sources)


@pytest.mark.parametrize("images", [1e6, "3", 0, True])
def test_images_per_epoch_of_a_mixture_is_a_whole_number(images: Any) -> None:
    with pytest.raises(ValueError, match=f"images_per_epoch is {re.escape(repr(images))}; it must be "):
        Mixture({"a": ("a.tar", 1)}, images_per_epoch=images)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_rate": "0.1"}, "max_rate is '0.1'; it must be from 0 to 1, the share of images that may be bad"),
        ({"max_rate": None}, "max_rate is None; it must be from 0 to 1"),
        ({"max_consecutive": None}, "max_consecutive is None; it must be a whole number"),
        ({"max_consecutive": 1.5}, "max_consecutive is 1.5; it must be a whole number"),
        ({"max_pixels": "1M"}, "max_pixels is '1M'; it must be a whole number"),
        ({"stall_s": None}, "stall_s is None; it must be a number of seconds above 0"),
        ({"quarantine": True}, "quarantine is True; give the path of a file, or None for no file"),
        ({"on_error": "ignore"}, "on_error is 'ignore'; it must be one of 'skip', 'raise'"),
    ],
)
def test_a_wrong_error_policy_is_an_error_when_it_is_made(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        ErrorPolicy(**options)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda loader: loader.set_epoch("1"), "epoch is '1'; it must be a whole number: 1"),
        (lambda loader: loader.set_epoch(1.5), "epoch is 1.5; it must be a whole number"),
        (lambda loader: loader.total_steps(-1), "epochs is -1; it must be at least 0"),
        (lambda loader: loader.state_dict(after=3), "after is 3; give the last PackedBatch that was used"),
        (lambda loader: loader.load_state_dict(None), "this is not the state of a loader"),
    ],
)
def test_a_wrong_call_of_a_loader_is_an_error(call: Callable[[PackedImageLoader], Any], says: str, here: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        call(load("a.tar"))


# Sources without a usable image


def test_images_of_an_unsupported_kind_alone_name_the_first_its_reason_and_decode(here: Path) -> None:
    says = (
        r"none of the 3 images can be used: 3 are bad, 0 filtered out by where; the first is '0' in '.*deep.tar': "
        r"it has 16 bits per channel.*\. To use some, give the channels and dtype of the files, .* or give decode="
    )
    with pytest.raises(ValueError, match=says):
        load("deep.tar")
    (batch,) = load("deep.tar", decode=lambda data: np.zeros((24, 32, 3), np.uint8))
    assert batch.num_images == 3


def test_bad_images_of_several_kinds_are_counted_by_reason(here: Path) -> None:
    says = (
        r"none of the 5 images can be used: 5 are bad, 0 filtered out by where; 3 such as '0' in '.*mixed.tar': it has "
        r"16 bits .*; 2 such as '3' in '.*mixed.tar': it begins with b'no image'"
    )
    with pytest.raises(ValueError, match=says):
        load("mixed.tar")


def test_images_beyond_a_limit_alone_name_the_limit(here: Path) -> None:
    with pytest.raises(
        ValueError, match=r"it has 768 pixels .* the limits are max_pixels 100 .* To use some, raise max_p"
    ):
        load("a.tar", errors=ErrorPolicy(max_pixels=100))


def test_images_that_where_and_oversize_leave_out_name_both_remedies(here: Path) -> None:
    with pytest.raises(
        ValueError, match=r"0 are bad, 3 filtered out by where\. To use some, let where keep some rows$"
    ):
        load("a.tar", where=lambda index: np.zeros(len(index), np.bool_))
    says = (
        "3 have more than seq_len 1 tokens and oversize is 'skip'. To use some, raise seq_len, or choose oversize='shri"
    )
    with pytest.raises(ValueError, match=re.escape(says)):
        load("a.tar", packing=PACKING.replace(seq_len=1, oversize="skip"))


def test_a_source_of_a_mixture_without_a_usable_image_names_the_reason(here: Path) -> None:
    says = (
        r"none of the images of source 'd' can be used: the first is bad, '0': it has 16 bits .*; leave it out of the"
    )
    with pytest.raises(ValueError, match=says):
        load(Mixture({"a": ("a.tar", 1), "d": ("deep.tar", 1)}))


# Printing


def test_a_loader_an_index_a_stream_and_a_batch_print_a_few_useful_lines(here: Path) -> None:
    loader = load(["a.tar", "b.tar"], label="cls", shuffle=True, seed=7)
    batch = next(iter(loader))
    assert repr(loader).splitlines() == [
        f"PackedImageLoader of 6 images in 2 shards, '{here / 'a.tar'}' to '{here / 'b.tar'}'",
        f"  packing: {loader.packing.summary()}",
        "  batches: 1 pack each, shuffled with seed 7; label: cls; extras: none",
        "  epoch 0, 1 packs used",
    ]
    assert repr(loader.index).splitlines() == [
        f"Index of 6 images in 2 shards, '{here / 'a.tar'}' to '{here / 'b.tar'}'",
        "  sizes: longer side 32 to 32 pixels, median 32; 0.00077 megapixels on average",
        "  members: cls, jpg, json",
        "  0 bad images, 0 samples without an image",
    ]
    assert repr(batch).splitlines() == [
        "PackedBatch of 1 pack with 64 token slots, 18.7 % full",
        "  images: 1, 12 tokens each",
        "  patches: uint8 (1, 64, 192) on cpu, patch size 8",
        "  labels: int64 (1, 7); extras: none",
        "  epoch 0, step 0, position 1",
    ]
    image = next(batch.images())
    assert repr(image) == f"PackedImage(key={image.key!r}, label=1, grid=4x3, patch_size=8, 12 of 12 tokens)"
    stream = pack_stream([{"jpg": JPEG}] * 3, PACKING, batch_size=1)
    assert keys_of(list(stream)) == ["0", "1", "2"]
    assert repr(stream) == "PackedStream, so far 1 batches of 3 images"


def test_printing_hides_secrets_and_counts_what_is_left_out(here: Path) -> None:
    write_tar(here / "c.tar", [("0.jpg", JPEG), ("1.png", DEEP), ("2.jpg", JPEG)])
    index = open_index("c.tar")
    assert "1 bad image, 0 samples" in repr(index)
    loader = load(index, where=lambda index: np.arange(len(index)) < 2)
    assert "of 1 image in 1 shard, '" in repr(loader)
    assert "; 1 bad, 1 left out by where" in repr(loader)
    mixed = load(Mixture({"web": ("a.tar", 1), "books": ("b.tar", 1)}))
    assert "6 images in a mixture of web (3 images), books (3 images)" in repr(mixed)
