"""The names of the packing algorithms, and what they have in common."""

from __future__ import annotations

from typing import Literal

Algorithm = Literal[
    "auto",
    "next_fit",
    "first_fit",
    "best_fit",
    "first_fit_decreasing",
    "best_fit_decreasing",
    "largest_fit",
    "subset_sum",
    "priced",
]

# These sort items by length, longest first.
DECREASING: tuple[Algorithm, ...] = ("first_fit_decreasing", "best_fit_decreasing")

# "auto" chooses one of these; of equals, the first. They choose among waiting items, so an item may be cut to close a
# pack.
CHOICES: tuple[Algorithm, ...] = ("subset_sum", "largest_fit", "priced")
