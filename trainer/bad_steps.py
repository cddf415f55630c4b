"""`BadSteps`: steps whose loss or gradient is NaN or infinite, counted without making the host wait for a GPU."""

from __future__ import annotations

import logging
import math

import torch

from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.trainer.ranks import rank_and_size
from patchnpack.trainer.train_config import TrainConfig

_log = logging.getLogger(__name__)


class BadSteps:
    """Counts the steps that were skipped, and ends a run after too many in a row.

    Whether a step is skipped is decided on the device. The host learns it from a copy: at once on a CPU, and on a GPU
    one step late, so that it never waits for a step that it has just queued.

    Attributes:
        skipped, in_row: number of steps skipped in the run so far, and just now.
        good_batch: a batch of the newest step that was not skipped; None before the first.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.skipped, self.in_row = 0, 0
        self.good_batch: PackedBatch | None = None
        # Steps to judge: number, loss and norm on the CPU, the event after which they are there, and a batch.
        self._taken: list[tuple[int, torch.Tensor, torch.cuda.Event | None, PackedBatch]] = []

    def add(self, step: int, seen: torch.Tensor, batch: PackedBatch) -> None:
        """Note a step: its number, its loss and gradient norm over all ranks (2,), and one of its batches."""
        copied = torch.cuda.Event() if seen.device.type == "cuda" else None
        self._taken.append((step, seen.to("cpu", non_blocking=True), copied, batch))
        if copied is not None:
            copied.record()

    def judge(self, kept: str, *, wait: bool) -> None:
        """Count the skipped steps among those noted; without `wait`, the newest step on a GPU is left for later.

        Args:
            kept: which checkpoint remains, for the message.
            wait: whether to wait for the newest step.

        Raises:
            FloatingPointError: more than `config.skip_bad_steps` steps in a row were skipped.
        """
        while self._taken and (wait or self._taken[0][2] is None or len(self._taken) > 1):
            step, seen, copied, batch = self._taken.pop(0)
            if copied is not None:
                copied.synchronize()
            loss, norm = seen.tolist()
            if math.isfinite(loss) and math.isfinite(norm):
                self.in_row, self.good_batch = 0, batch
                continue
            self.skipped, self.in_row = self.skipped + 1, self.in_row + 1
            limit, found = self.config.skip_bad_steps, f"the loss is {loss:g} and the gradient norm {norm:g}"
            if self.in_row > limit:
                after = f" ({self.in_row} bad steps in a row)" if limit else ""
                raise FloatingPointError(
                    f"{found} in step {step}{after}, so the step was not taken; {kept}; try an lr below "
                    f"{self.config.lr} or precision 'float32', or set skip_bad_steps above {limit} if only some "
                    "batches are bad"
                )
            if rank_and_size()[0] == 0:
                _log.warning("step %d is skipped: %s (%d in a row)", step, found, self.in_row)
