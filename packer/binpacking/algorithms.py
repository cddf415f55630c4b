"""The names of the packing algorithms."""

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
]
