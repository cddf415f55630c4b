"""The rule of `sample=`: what it means, and what is said of a value that is no rule."""

from __future__ import annotations

import re
from typing import Any

import pytest

from patchnpack.loaders.shards.sample_rule import sample_rule


def test_none_is_no_rule() -> None:
    assert sample_rule(None) is None


def test_regex_matches_whole_keys() -> None:
    rule = sample_rule(r"key:(.+)_\d+")
    assert rule is not None
    assert rule.group is not None
    assert [rule.group(key) for key in ("a/7_002", "a_1_2", "a_2x", "a", "_1")] == ["a/7", "a_1", None, None, None]
    assert (rule.name, rule.is_members, rule.is_function) == (r"key:(.+)_\d+", False, False)


def test_function_is_called_by_its_name() -> None:
    def by_folder(key: str) -> str:
        return key.rpartition("/")[0]

    rule = sample_rule(by_folder)
    assert rule is not None
    assert rule.group is not None
    assert rule.group("a/b/c") == "a/b"
    assert rule.name.endswith("by_folder")
    assert rule.is_function


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("member", "did you mean 'members'?"),
        ("pages", "did you mean 'members'?"),
        ("Members", "did you mean 'members'?"),
        (r"(.+)_\d", r"did you mean 'key:(.+)_\\d'?"),
        ("keys:(.+)-1", "did you mean 'key:(.+)-1'?"),
        ("key=(.+)-1", "did you mean 'key:(.+)-1'?"),
        ("folder", "it must be 'members', 'key:REGEX' with a group"),
        ("", "it must be 'members'"),
        (True, "sample is True; it must be"),
        (["members"], "it must be 'members'"),
        ({"a": "members"}, "A dict gives each source of a Mixture its rule"),
        ("key:", "has no group"),
        ("key:.+", "put parentheses around the part of the key"),
        ("key:(a)(b)", "has 2 groups; keep one"),
        ("key:(", "regular expression is invalid (missing )"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_remedy(sample: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sample_rule(sample)


def test_function_must_return_a_text() -> None:
    rule = sample_rule(len)
    assert rule is not None
    assert rule.group is not None
    with pytest.raises(ValueError, match=r"the function 'len', returned 3 for the key 'abc'; it must return the name"):
        rule.group("abc")


def test_an_error_of_the_function_is_its_own_and_says_for_which_key() -> None:
    rule = sample_rule({"a": "b"}.__getitem__)
    assert rule is not None
    assert rule.group is not None
    with pytest.raises(KeyError, match="abc") as caught:
        rule.group("abc")
    assert "raised by sample, the function 'dict.__getitem__', for the key 'abc'" in caught.value.__notes__[0]
