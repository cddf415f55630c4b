"""`SampleRule`: which images belong together, as given to `sample=`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from patchnpack.loaders.shards.tar import IMAGE, IMAGE_OR_VIDEO
from patchnpack.packer.checks import shown

Sample = str | Callable[[str], str] | None

MEMBERS = "members"
_KEY = "key:"
_CHOICES = "'members', 'key:REGEX' with a group such as 'key:(.+)_[0-9]+', a function from a key to a name, or None"


@dataclass(frozen=True, slots=True)
class SampleRule:
    """A rule that says which images are one sample.

    Attributes:
        name: what an index calls the rule: "members", "key:REGEX", or the name of a function.
        group: maps the key of a row to the name of its sample, None where it has none; None for "members".
        is_function: whether `group` is the user's function, of which the name says nothing.
    """

    name: str
    group: Callable[[str], str | None] | None = None
    is_function: bool = False

    @property
    def is_members(self) -> bool:
        """Whether the images of a sample are the members of one sample of a shard, or the pages of one file."""
        return self.group is None


def sample_rule(sample: object) -> SampleRule | None:
    r"""Return the rule that `sample=` names; None where each image is a sample.

    Raises:
        ValueError: it is no rule, or its regular expression is invalid or has no group.

    >>> sample_rule("members").is_members, sample_rule(r"key:(.+)_\d+").group("a/7_002")
    (True, 'a/7')
    >>> sample_rule("member")
    Traceback (most recent call last):
        ...
    ValueError: sample is 'member'; did you mean 'members'?
    """
    if sample is None:
        return None
    if isinstance(sample, str):
        if sample == MEMBERS:
            return SampleRule(MEMBERS)
        if sample.startswith(_KEY):
            return SampleRule(sample, _by_regex(sample))
        raise ValueError(f"sample is {shown(sample)}; {_meant(sample)}")
    if callable(sample):
        name = getattr(sample, "__qualname__", type(sample).__qualname__)
        return SampleRule(name, _checked(sample, name), is_function=True)
    by_source = ". A dict gives each source of a Mixture its rule" if isinstance(sample, Mapping) else ""
    raise ValueError(f"sample is {shown(sample)}; it must be {_CHOICES}{by_source}")


def is_by_members(rule: SampleRule | None) -> bool:
    """Return whether all images of a sample are rows of the index: the rule is "members"."""
    return rule is not None and rule.is_members


def images_of(image: str, rule: SampleRule | None, own: Sequence[str] = ()) -> str:
    """Return the extensions of images: `image`, whose default includes those of videos where all frames are used.

    The names of a user's formats, `own`, stand before the default.

    Raises:
        ValueError: `image` is not the default, and does not name one of the user's formats.
    """
    if image == IMAGE:
        return ";".join([*own, IMAGE_OR_VIDEO if is_by_members(rule) else IMAGE])
    names = [name.strip(" .").lower() for name in image.split(";")]
    for name in own:
        if name not in {*names, *(each.rpartition(".")[2] for each in names)}:
            raise ValueError(f"formats has {name!r}, which image={image!r} does not name; name it in image, too")
    return image


def _by_regex(sample: str) -> Callable[[str], str | None]:
    """Return the function from a key to the text of the groups of "key:REGEX", which must match the whole key."""
    text = sample.removeprefix(_KEY)
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(
            f"sample is '{sample}', and its regular expression is invalid ({error}); write a regular expression of "
            "Python's `re`, such as 'key:(.+)_[0-9]+'"
        ) from None
    if not pattern.groups:
        raise ValueError(
            f"sample is '{sample}', whose regular expression has no group to name the sample; put parentheses around "
            "the part of the key that the images of a sample share, as in 'key:(.+)_[0-9]+'"
        )
    if pattern.groups > 1:
        raise ValueError(
            f"sample is '{sample}', whose regular expression has {pattern.groups} groups; keep one, around the part of "
            "the key that the images of a sample share, and write the others as (?:...)"
        )

    def group(key: str) -> str | None:
        match = pattern.fullmatch(key)
        return None if match is None else match[1]

    return group


def _checked(function: Callable[[str], object], name: str) -> Callable[[str], str | None]:
    def group(key: str) -> str | None:
        try:
            found = function(key)
        except Exception as error:
            error.add_note(f"raised by sample, the function {name!r}, for the key {key!r}")
            raise
        if found is not None and not isinstance(found, str):
            raise ValueError(
                f"sample, the function {name!r}, returned {shown(found)} for the key {key!r}; it must return the name "
                "of the sample as a text"
            )
        return found

    return group


def _meant(text: str) -> str:
    """Say what a text that is no rule may have been meant as."""
    word = text.partition(":")[0].partition("=")[0].strip().lower()
    if difflib.get_close_matches(word, [MEMBERS, "pages", "frames", "images"], 1, 0.75):
        return f"did you mean {MEMBERS!r}?"
    rest = text[len(word) + 1 :] if difflib.get_close_matches(word, ["key", "keys"], 1, 0.75) else text
    try:
        has_group = bool(re.compile(rest).groups)
    except re.error:
        has_group = False
    return f"did you mean {_KEY + rest!r}?" if has_group else f"it must be {_CHOICES}"
