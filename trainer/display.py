"""Output of a run: a progress bar or lines on the terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Display:
    """A progress bar on a terminal; otherwise a plain line every `log_every` seconds."""

    def __init__(self, log_every: float, quiet: bool = False) -> None:
        console = Console(stderr=True, highlight=False, quiet=quiet)
        text = TextColumn("{task.description}")
        self.bar = Progress(BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), text, console=console)
        self.bar.disable = not console.is_terminal
        self.every = log_every if self.bar.disable else 0.5
        self.task = self.bar.add_task("", total=1.0)
        self.last = time.perf_counter()

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def due(self) -> bool:
        return time.perf_counter() - self.last >= self.every

    def say(self, text: str) -> None:
        """Print a permanent line."""
        self.bar.console.print(text, soft_wrap=True)

    def show(self, progress: float, row: dict[str, float], keep: bool = False) -> None:
        """Show a row of metrics; with `keep`, as a permanent line."""
        self.last = time.perf_counter()
        images, samples = row["images_per_second"], row["samples_per_second"]
        text = (
            f"epoch {row['epoch']}  loss {row['loss']:.3f}  accuracy {row['accuracy']:.3f}  "
            + (f"{samples:.0f} samples/s  " if samples != images else "")
            + f"{images:.0f} images/s  {row['tokens_per_second']:.0f} tokens/s  "
            f"padding {row['padding']:.1%}"
        )
        if "val_loss" in row:
            text += f"  validation loss {row['val_loss']:.3f}  accuracy {row['val_accuracy']:.3f}"
        if row.get("skipped_steps"):
            text += f"  skipped steps {row['skipped_steps']:.0f}"
        self.bar.update(self.task, completed=progress, description=text)
        if keep or self.bar.disable:
            self.say(f"{progress:4.0%}  {text}")
