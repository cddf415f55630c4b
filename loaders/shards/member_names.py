"""Names of members: lower case, except where the columns of a table differ only in case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


def member_names(columns: Sequence[str]) -> dict[str, str]:
    """Return the member name of each column: in lower case, or as it is where lower case would not be unique.

    >>> member_names(["Image", "label", "Label"])
    {'Image': 'image', 'label': 'label', 'Label': 'Label'}
    """
    count = Counter(name.lower() for name in columns)
    return {name: name.lower() if count[name.lower()] == 1 else name for name in columns}


def find_member(name: str, members: Iterable[str]) -> str | None:
    """Return the member that a name means: the one spelled like it, else the only one that differs in case.

    Raises:
        ValueError: several members differ from the name in case only.

    >>> find_member("Label", ["label", "txt"]), find_member("Label", ["label", "Label"]), find_member("cls", ["txt"])
    ('label', 'Label', None)
    """
    members = list(members)
    if name in members:
        return name
    found = [member for member in members if member.lower() == name.lower()]
    if len(found) > 1:
        listed = " and ".join(map(repr, sorted(found)))
        raise ValueError(f"{name!r} could be {listed}, which differ only in case; spell the one that you mean exactly")
    return found[0] if found else None
