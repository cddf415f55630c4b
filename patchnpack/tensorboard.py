"""`TensorBoard`: scalars of a run, written to a folder for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class TensorBoard:
    """Write the scalars of a run to a folder; give it to `train` as `log`.

    At the first call, the scalars of that step and later ones, which a killed run left, are purged.

    Args:
        folder: the folder, created with the first scalars.

    Raises:
        ValueError: the package tensorboard is not installed.

    >>> log = TensorBoard("runs/first")
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "tensorboard=True needs the extra `tensorboard`: pip install 'patchnpack[tensorboard]'"
            ) from error
        self._make, self._folder = SummaryWriter, str(folder)
        self._writer: Any = None

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        """Write the scalars of a step, and flush them to disk."""
        writer = self._writer or self._make(self._folder, purge_step=step)
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)
        writer.flush()
        self._writer = writer
