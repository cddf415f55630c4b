"""The progress bar that every command shows on standard error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(task: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the rate and the remaining time while the block runs.

    The bar appears only on a terminal and disappears at the end; --quiet turns it off.

    Args:
        task: what the command is doing, such as "reading headers".

    Yields:
        A function to call with the number of finished items and their total.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(task),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    visible = console.is_terminal and logging.getLogger("patchnpack").isEnabledFor(logging.WARNING)
    with Progress(*columns, console=console, transient=True, disable=not visible) as bar:
        number = bar.add_task(task, total=None, rate="")

        def update(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(number, completed=done, total=total, rate=f"{speed:,.0f}/s" if speed else "")

        yield update
