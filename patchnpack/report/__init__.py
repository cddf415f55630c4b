"""Packing reports as JSON fields, CSV, terminal tables and an HTML page.

The report itself comes from `patchnpack.packer.analysis`; this package only presents it. Importing it loads neither
matplotlib nor jinja2: `write_page` loads them when it is called.
"""

from typing import TYPE_CHECKING

from patchnpack._lazy import lazy_names
from patchnpack.report.fields import baseline_rows, report_fields, setting_fields, sweep_fields, to_csv
from patchnpack.report.table import print_report, print_sweep

if TYPE_CHECKING:
    from patchnpack.report.page import write_page

__all__ = [
    "baseline_rows",
    "print_report",
    "print_sweep",
    "report_fields",
    "setting_fields",
    "sweep_fields",
    "to_csv",
    "write_page",
]

if not TYPE_CHECKING:  # a page draws packs, which imports torch
    __getattr__, __dir__ = lazy_names(__name__, {"page": ("write_page",)})
