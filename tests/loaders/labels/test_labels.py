from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchnpack.loaders.assembly.samples import read_member
from patchnpack.loaders.index.scanner import scan
from patchnpack.loaders.labels.labels import NO_LABEL, Labels

Make = Callable[..., Labels]


@pytest.fixture
def make_labels(
    tmp_path: Path,
    write_tar: Callable[..., str],
    draw_image: Callable[..., Image.Image],
    encode_image: Callable[..., bytes],
) -> Make:
    """Make the `Labels` of a shard with one image for each given set of members."""
    data = encode_image(draw_image(9, 9))

    def make(samples: Sequence[Mapping[str, str | bytes]], label: Any, classes: Any = None) -> Labels:
        members: list[tuple[str, bytes]] = []
        for i, sample in enumerate(samples):
            members.append((f"k{i}.jpg", data))
            members += [(f"k{i}.{e}", text.encode() if isinstance(text, str) else text) for e, text in sample.items()]
        index = scan(write_tar(tmp_path / "a.tar", members))
        reader = index.reader()
        return Labels(index, label, classes, lambda row, extension: read_member(index, reader, row, extension))

    return make


def all_of(labels: Labels, n: int) -> list[Any]:
    return [labels.of(row) for row in range(n)]


def notes(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", ()))


def test_no_label_is_minus_100_for_every_row(make_labels: Make) -> None:
    labels = make_labels([{"cls": "3"}, {}], None)
    assert all_of(labels, 2) == [NO_LABEL, NO_LABEL] == [-100, -100]
    assert (labels.shape, labels.dtype.name) == ((), "int64")


@pytest.mark.parametrize("label", ["cls", ".cls", "CLS"])
def test_cls_is_a_whole_number(label: str, make_labels: Make) -> None:
    labels = make_labels([{"cls": "3"}, {"cls": " 0\n"}, {"cls": "12"}], label)
    assert all_of(labels, 3) == [3, 0, 12]
    assert (labels.shape, labels.dtype.name, labels.num_classes) == ((), "int64", 13)


def test_class_names_come_from_a_list_a_file_or_a_mapping(make_labels: Make, tmp_path: Path) -> None:
    samples = [{"cls": "dress"}, {"cls": "hat\n"}, {"cls": "1"}]
    file = tmp_path / "classes.txt"
    file.write_text("hat\nshoe\n\ndress\n")
    for classes in (["hat", "shoe", "dress"], ("hat", "shoe", "dress"), file, str(file)):
        labels = make_labels(samples, "cls", classes)
        assert all_of(labels, 3) == [2, 0, 1]
        assert labels.num_classes == 3
    assert all_of(make_labels(samples, "cls", {"dress": 7, "hat": 5, "shoe": 1}), 3) == [7, 5, 1]


def test_class_names_that_are_numbers_are_names(make_labels: Make) -> None:
    assert all_of(make_labels([{"cls": "20"}, {"cls": "10"}], "cls", ["10", "20"]), 2) == [1, 0]


def test_any_text_member_is_a_label(make_labels: Make) -> None:
    assert all_of(make_labels([{"txt": "b"}, {"txt": "a"}, {}], "txt", ["a", "b"]), 3) == [1, 0, -100]


def test_json_field_is_a_number_a_name_or_a_target(make_labels: Make) -> None:
    samples = [
        {"json": json.dumps({"n": n, "name": name, "soft": soft, "yes": n > 1})}
        for n, name, soft in ((4, "b", [0.5, 0.5]), (1, "a", [1, 0]))
    ]
    assert all_of(make_labels(samples, "json:n"), 2) == [4, 1]
    assert all_of(make_labels(samples, "json:name", ["a", "b"]), 2) == [1, 0]
    assert all_of(make_labels(samples, "json:yes"), 2) == [1, 0]
    soft = make_labels(samples, "json:soft")
    assert (soft.shape, soft.dtype.name, soft.num_classes) == ((2,), "float32", 2)
    assert np.array_equal(np.stack(all_of(soft, 2)), np.array([[0.5, 0.5], [1, 0]], np.float32))


def test_callable_gets_every_member_and_returns_an_int(make_labels: Make) -> None:
    seen: list[set[str]] = []

    def label(members: dict[str, bytes]) -> Any:
        seen.append(set(members))
        return len(members["txt"]) if "txt" in members else None

    labels = make_labels([{}, {"txt": "abc", "cls": "1"}, {"txt": "abcd"}], label)
    assert all_of(labels, 3) == [-100, 3, 4]
    assert seen[-3:] == [{"jpg"}, {"jpg", "txt", "cls"}, {"jpg", "txt"}]


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.bool_, bool, np.array])
def test_whole_number_of_any_kind_is_a_class(kind: Callable[[int], Any], make_labels: Make) -> None:
    assert all_of(make_labels([{"cls": "1"}], lambda members: kind(1)), 1) == [1]


def test_callable_returns_a_target_or_none(make_labels: Make) -> None:
    samples = [{}, {"json": "[0.25, 1.5, -3]"}, {"json": "[1, 2, 3]"}]
    labels = make_labels(samples, lambda members: json.loads(members["json"]) if "json" in members else None)
    assert (labels.shape, labels.dtype.name) == ((3,), "float32")
    assert np.isnan(labels.of(0))
    assert labels.of(1).dtype == np.float32
    assert labels.of(1).tolist() == [0.25, 1.5, -3]


# Mistakes


@pytest.mark.parametrize("label", ["cls", "txt", "json:n", lambda members: None])
def test_label_absent_from_every_sample_is_refused_with_the_existing_members(label: Any, make_labels: Make) -> None:
    with pytest.raises(ValueError, match=r"is absent from all 2 samples; their members are .jpg, .seg.png"):
        make_labels([{"seg.png": "x"}, {}], label)


def test_json_field_that_no_sample_has_is_refused(make_labels: Make) -> None:
    with pytest.raises(ValueError, match="label 'json:class' is absent from all 2 samples"):
        make_labels([{"json": '{"label": 3}'}, {"json": '{"class": null}'}], "json:class")


def test_label_absent_from_some_is_minus_100(make_labels: Make) -> None:
    assert all_of(make_labels([{}, {"cls": "5"}, {}], "cls"), 3) == [-100, 5, -100]
    assert all_of(make_labels([{}, {"json": "{}"}, {"json": '{"n": 2}'}], "json:n"), 3) == [-100, -100, 2]


@pytest.mark.parametrize("member", ["cls", "txt"])
@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("sofa", None, r"label 'sofa' \(of '...'\) is neither a whole number nor a known class; give classes="),
        ("sofa", ["chair", "table"], r"label 'sofa' \(of '...'\) is neither .*; classes has 2 others"),
        ("2", ["chair", "table"], "label 2 is not among the 2 classes"),
        ("-1", ["chair", "table"], "label -1 is not among the 2 classes"),
        ("1.5", None, "label '1.5'"),
        ("", None, "label ''"),
        (b"\xff\xfe", None, "label '\ufffd\ufffd'"),
    ],
)
def test_text_that_is_not_a_class_is_refused_with_its_sample(
    text: str | bytes, classes: list[str] | None, message: str, member: str, make_labels: Make
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_labels([{}, {member: text}], member, classes)
    assert "key 'k1' in" in notes(caught.value)


def test_unknown_class_in_the_last_cls_member_is_found_at_once(make_labels: Make) -> None:
    with pytest.raises(ValueError, match="label 'sofa'") as caught:
        make_labels([{"cls": "1"}] * 20 + [{"cls": "sofa"}], "cls")
    assert "key 'k20'" in notes(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ('{"n": ' + "[" * 100_000, "recursion"),
        ("[1]", "holds list; 'json:n' asks for a field of an object"),
        ('{"n": 1.5}', "label '1.5'"),
        ('{"n": [[1]]}', r"a label is \[\[1\]\]; it must be a whole number"),
        ('{"n": ["a"]}', r"a label is \['a'\]; it must be"),
    ],
)
def test_json_without_a_label_is_refused_with_the_sample(text: str, message: str, make_labels: Make) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_labels([{"json": text}], "json:n")
    assert "'k0'" in notes(caught.value) + str(caught.value)


def test_json_number_outside_the_classes_is_refused(make_labels: Make) -> None:
    with pytest.raises(ValueError, match="label 9 is not among the 2 classes"):
        make_labels([{"json": '{"n": 9}'}], "json:n", ["a", "b"])


@pytest.mark.parametrize(
    "text", ["1_0", "\u0663", "\u00b2", "1e3", "3.0", "0x1", "1 0", "+-1", "nan", "inf", "True", "", "+"]
)
@pytest.mark.parametrize("member", ["cls", "txt", "json:n"])
def test_text_that_is_no_decimal_number_is_refused(text: str, member: str, make_labels: Make) -> None:
    """Python takes some of these for whole numbers."""
    name = member.partition(":")[0]
    with pytest.raises(ValueError, match="is neither a whole number nor a known class; give classes=") as caught:
        make_labels([{name: json.dumps({"n": text}) if name == "json" else text}], member)
    assert "key 'k0' in" in notes(caught.value)
    assert "a.tar" in notes(caught.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("+7", 7),
        ("-3", -3),
        ("007", 7),
        (" 3\n", 3),
        (f"{2**63 - 1}", 2**63 - 1),
        (f"-{2**63}", -(2**63)),
        ("0" * 5000, 0),
    ],
)
def test_sign_zeros_and_space_are_part_of_a_number(text: str, number: int, make_labels: Make) -> None:
    for member, data in (("cls", text), ("txt", text), ("json:n", json.dumps({"n": text}))):
        assert make_labels([{member.partition(":")[0]: data}], member).of(0) == number


@pytest.mark.parametrize("text", [f"{2**63}", f"-{2**63 + 1}", "99999999999999999999", "-1" + "0" * 5000, f"{10**19}"])
def test_number_beyond_int64_is_refused_with_its_sample(text: str, make_labels: Make) -> None:
    for member, data in (("cls", text), ("txt", text), ("json:n", json.dumps({"n": text}))):
        with pytest.raises(ValueError, match=r"label '.*(characters\))? \(of '.*'\) does not fit in int64") as caught:
            make_labels([{member.partition(":")[0]: data}], member)
        assert "key 'k0' in" in notes(caught.value)


@pytest.mark.parametrize("value", [2**63, -(2**70), np.uint64(2**63), pytest.param(10**5000, id="huge")])
def test_value_beyond_int64_is_refused(value: Any, make_labels: Make) -> None:
    with pytest.raises(ValueError, match=r"int64") as caught:
        make_labels([{}], lambda members: value)
    assert "key 'k0' in" in notes(caught.value)


def test_json_values_of_other_types_are_read_by_their_type(make_labels: Make) -> None:
    values = ["true", "false", "null", "NaN", "12", "-0"]
    labels = make_labels([{"json": f'{{"n": {value}}}'} for value in values], "json:n")
    assert all_of(labels, 6) == [1, 0, NO_LABEL, NO_LABEL, 12, 0]
    for value in ("0.5", "1e30", "Infinity", "1" + "0" * 30):
        with pytest.raises(ValueError, match="label '"):
            make_labels([{"json": f'{{"n": {value}}}'}], "json:n")
    with pytest.raises(ValueError, match="label 1 is not among the 1 classes"):
        make_labels([{"json": '{"n": true}'}], "json:n", ["a"])


def test_target_beyond_float32_is_refused(make_labels: Make) -> None:
    labels = make_labels([{"json": '{"t": [1, -Infinity, NaN, 3e38]}'}], "json:t")
    assert labels.of(0).tolist()[1] == -np.inf
    for number in ("1e39", "-1e300"):
        with pytest.raises(ValueError, match="a list of at least one number of float32"):
            make_labels([{"json": f'{{"t": [1, {number}]}}'}], "json:t")


@pytest.mark.parametrize("number", [True, 1.0, "1", -1, 2**63, None])
def test_mapping_of_classes_to_anything_but_numbers_is_refused(number: Any, make_labels: Make) -> None:
    with pytest.raises(
        ValueError, match=r"the number of class 'cat' in classes is .*; it must be (a whole number|at (least|most))"
    ):
        make_labels([{"cls": "cat"}], "cls", {"dog": 0, "cat": number})


def test_classes_file_may_begin_with_a_byte_order_mark(make_labels: Make, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("\ufeffcat\r\ndog\r\n".encode())
    assert all_of(make_labels([{"cls": "cat"}, {"cls": "dog"}], "cls", tmp_path / "names.txt"), 2) == [0, 1]


@pytest.mark.parametrize("value", [0.5, 3.0, np.float32(2), "cat", [[1.0]], object()])
def test_callable_that_returns_neither_class_nor_target_is_refused(value: Any, make_labels: Make) -> None:
    """An array of classes would truncate a fractional number."""
    with pytest.raises(ValueError, match=r"must be a whole number .* of one, write"):
        make_labels([{}], lambda members: value)


def test_targets_of_different_lengths_are_refused_with_the_key(make_labels: Make) -> None:
    labels = make_labels([{"json": '{"t": [1, 2]}'}, {"json": '{"t": [1]}'}, {"json": '{"t": 3}'}], "json:t")
    for row, shape in ((1, r"\(1,\)"), (2, r"\(\)")):
        with pytest.raises(ValueError, match=rf"label of 'k{row}' has shape {shape}, the labels before it \(2,\)"):
            labels.of(row)


def test_error_of_the_callable_names_the_sample(make_labels: Make) -> None:
    with pytest.raises(KeyError) as caught:
        make_labels([{}], lambda members: members["caption"])
    assert "key 'k0' in" in notes(caught.value)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("json", "name the field that holds the label: 'json:FIELD'"),
        ("txt:a", "only a .json member has fields: write 'json:a'"),
    ],
)
def test_malformed_label_option_is_refused(label: str, message: str, make_labels: Make) -> None:
    with pytest.raises(ValueError, match=message):
        make_labels([{"json": "{}"}], label)


def test_missing_or_repeated_classes_are_refused(make_labels: Make, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"classes file '.*names.txt' does not exist; give a file with one class name per line"
    ):
        make_labels([{"cls": "1"}], "cls", tmp_path / "names.txt")
    with pytest.raises(ValueError, match=r"classes repeats 1 names, such as .*; each class needs a name of its own"):
        make_labels([{"cls": "1"}], "cls", ["a", "b", "a"])


@pytest.mark.parametrize("text", [b"\xef\xbb\xbf1\r\n", b"\xef\xbb\xbf 1", b" 1\n"])
@pytest.mark.parametrize("member", ["cls", "txt"])
def test_byte_order_mark_of_a_label_does_not_count(make_labels: Make, text: bytes, member: str) -> None:
    assert all_of(make_labels([{member: text}], member), 1) == [1]
    named = text.replace(b"1", b"dog")
    assert all_of(make_labels([{member: named}], member, ["cat", "dog"]), 1) == [1]


def test_whole_floats_in_json_are_classes_as_tools_with_missing_values_write_them(make_labels: Make) -> None:
    labels = make_labels([{"json": '{"l": 3.0}'}, {"json": '{"l": NaN}'}, {"json": '{"l": -2.0}'}], "json:l")
    assert all_of(labels, 3) == [3, NO_LABEL, -2]
    named = make_labels([{"json": '{"l": 3.0}'}], "json:l", ["2.0", "3.0"])
    assert all_of(named, 1) == [1]  # a name of classes= comes first
    with pytest.raises(ValueError, match=r"label '1.5' .* is neither a whole number"):
        make_labels([{"json": '{"l": 1.5}'}], "json:l")


@pytest.mark.parametrize(
    ("text", "classes", "says"),
    [
        ("Cat", ["dog", "cat"], "classes has 'cat', and this is 'Cat': they differ in case or in the Unicode form"),
        ("cafe\u0301", ["caf\xe9"], r"classes has 'caf\\xe9', and this is 'cafe\\u0301': they differ in case or"),
        ("bird", ["dog", "cat"], "classes has 2 others: dog, cat"),
        ("caf\xe9".encode("latin-1"), ["caf\xe9"], "its text is not UTF-8; write it in UTF-8"),
    ],
)
def test_unknown_name_says_what_the_classes_are(
    make_labels: Make, text: str | bytes, classes: list[str], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        make_labels([{"cls": text}], "cls", classes)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("c.txt", "cat\n".encode("utf-16"), r"classes file '.*c.txt' is not in UTF-8 \(byte 0 is 0xff\); save it in"),
        ("c.json", b'{"cat": 0}', r"classes file '.*c.json' is JSON; give a file with one class name per line, or in"),
        ("c.txt", b"cat\ndog\ncat\n", "classes repeats 1 names, such as 'cat'; each class needs a name of its own"),
    ],
)
def test_file_that_lists_no_classes_is_named(
    make_labels: Make, tmp_path: Path, name: str, data: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=says):
        make_labels([{"cls": "cat"}], "cls", tmp_path / name)
