"""Checks of the options that name members of samples: `image` and `extras`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from patchnpack.packer.checks import shown


def check_extensions(image: object) -> None:
    """Raise ValueError unless `image` is extensions separated by semicolons.

    >>> check_extensions("jpg,png")
    Traceback (most recent call last):
        ...
    ValueError: image is 'jpg,png'; give extensions as one text, separated by semicolons: 'jpg;png'
    """
    if isinstance(image, str) and image.strip(" ;.") and not re.search(r"[,*]", image):
        return
    listed = image if isinstance(image, tuple | list | set | frozenset) else re.split(r"[,;]", str(image))
    meant = ";".join(str(name).strip().lstrip("*.") for name in listed if str(name).strip())
    usable = isinstance(image, str | tuple | list | set | frozenset) and meant
    raise ValueError(
        f"image is {shown(image)}; give extensions as one text, separated by semicolons: "
        f"{meant if usable else 'jpg;png'!r}"
    )


def checked_extras(extras: object) -> tuple[str, ...]:
    """Return `extras` as a tuple. Raises ValueError unless it is names of members, each a text.

    >>> checked_extras("txt")
    Traceback (most recent call last):
        ...
    ValueError: extras is 'txt'; give a list of extensions: ['txt']
    """
    if isinstance(extras, str):
        raise ValueError(f"extras is {extras!r}; give a list of extensions: [{extras!r}]")
    if not isinstance(extras, Iterable):
        raise ValueError(f"extras is {shown(extras)}; give a list of extensions such as ['txt'], or leave it out")
    names = tuple(extras)
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"extras holds {shown(name)}; each must be the extension of a member, such as 'txt'")
        member, colon, field = name.partition(":")
        if colon:
            raise ValueError(
                f"extras holds {name!r}; an extra is a whole member: give {member!r}, and take {field!r} from the "
                f"value in batch.extras[{member!r}]"
            )
    return names
