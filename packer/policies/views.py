"""`Views`: several crops of one picture, each an image of its sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patchnpack.packer.checks import check_whole, shown
from patchnpack.packer.policies.resolution import Resolution
from patchnpack.packer.policies.sampled_resolution import RESOLUTIONS

# V views


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Views:
    """Make several images of each picture, from one read and one decode (DINO, arXiv 2104.14294).

    Each group gives a number of views and the resolution policy that sizes them. Each view draws its own crop. The
    images of a sample come picture by picture, and view by view in the order of the groups: with V views, image `frame`
    shows picture `frame // V` in view `frame % V`.

    ```
    Views((2, globals), (3, locals))      |1111111111111111|2222222222222222|3333|4444|5555|      one picture, V = 5
    ```

    Args:
        groups: pairs of a number of views and a resolution policy.

    Attributes:
        groups: the pairs.

    Raises:
        ValueError: a group is not such a pair.

    >>> from patchnpack.packer import RandomResizedCrop
    >>> large = RandomResizedCrop(scale=(0.25, 1), max_tokens=196)
    >>> small = RandomResizedCrop(scale=(0.05, 0.25), max_tokens=36)
    >>> crops = Views((2, large), (8, small))
    >>> crops.count, [(first, last) for first, last, _ in crops.ranges()]
    (10, [(0, 2), (2, 10)])
    """

    groups: tuple[tuple[int, Resolution], ...]

    def __init__(self, *groups: tuple[int, Resolution]) -> None:
        if not groups:
            raise ValueError("Views() has no group; give at least one pair, such as Views((2, RandomResizedCrop()))")
        checked = []
        for group in groups:
            given: object = group
            if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[1], RESOLUTIONS):
                raise ValueError(
                    f"views has the group {shown(given)}; each must pair a number of views with a resolution policy: "
                    f"(2, RandomResizedCrop(max_tokens=196)){_meant(given)}"
                )
            check_whole("the number of views of a group", given[0])
            checked.append((int(given[0]), given[1]))
        object.__setattr__(self, "groups", tuple(checked))

    def __repr__(self) -> str:
        return f"Views({', '.join(f'({count}, {policy!r})' for count, policy in self.groups)})"

    @property
    def count(self) -> int:
        """V, views of each picture."""
        return sum(count for count, _ in self.groups)

    @property
    def draws(self) -> bool:
        """Whether any view is drawn at random and so differs between epochs."""
        return any(policy.draws for _, policy in self.groups)

    @property
    def policies(self) -> tuple[Resolution, ...]:
        """The policy of each group."""
        return tuple(policy for _, policy in self.groups)

    def ranges(self) -> list[tuple[int, int, Resolution]]:
        """The views of each group, from `first` to below `last`, and their policy."""
        ends = np.cumsum([count for count, _ in self.groups]).tolist()
        return [(end - count, end, policy) for end, (count, policy) in zip(ends, self.groups, strict=True)]


def _meant(group: object) -> str:
    """Return a suggestion for a wrong group, "" where there is none."""
    if isinstance(group, Resolution):
        return f": for one such view give (1, {group!r})"
    policy = group[1] if isinstance(group, tuple | list) and len(group) == 2 else group
    if isinstance(policy, type) and issubclass(policy, Resolution):
        return f": call the class, {policy.__name__}(...)"
    if isinstance(group, tuple | list) and group and all(isinstance(each, tuple | list) for each in group):
        return ": give the groups one by one, Views(first, second), not in a list"
    return ""
