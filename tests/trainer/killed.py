"""Train a small model repeatedly, killed at given events, and save the losses of each run.

Started by test_resume.py: killed.py FOLDER SHARDS COUNT SEED. Everything is imported once; each run is a fork.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from patchnpack import ConstantDrop, FitTokens, PackedImageLoader, Packing
from patchnpack.models import NaViTConfig
from patchnpack.trainer import TrainConfig, checkpoint, train

CONFIG = TrainConfig(
    epochs=2,
    lr=3e-3,
    accumulate=2,
    ema=0.9,
    mixup=0.4,
    cutmix=0.6,
    save_every=2,
    keep=2,
    layer_decay=0.8,
    precision="float32",
)
PACKING = Packing(seq_len=16, resolution=FitTokens(9), token_drop=ConstantDrop(0.3), fill="none")


def run(out: Path, shards: str, kill_at: int) -> None:
    """Train until event `kill_at`, at which the process kills itself. Events: before each step, inside each save."""
    events = 0

    def event(*_: Any) -> None:
        nonlocal events
        events += 1
        if events == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    save = torch.save

    def cut_save(content: Any, file: Any) -> None:
        save(content, file)
        event()  # written, but not yet renamed

    checkpoint.torch.save = cut_save  # type: ignore[attr-defined]
    register_optimizer_step_pre_hook(event)
    loader = PackedImageLoader(shards, PACKING, batch_size=1, shuffle=True, label="cls", num_threads=1)
    held_out = PackedImageLoader(shards, Packing(seq_len=64), batch_size=2, label="cls", num_threads=1)
    model = NaViTConfig(num_classes=2, width=12, depth=2, heads=2, drop_path=0.2)
    result = train(model, loader, config=CONFIG, validation=held_out, out=out)
    timeless = [{name: row[name] for name in ("step", "epoch", "loss", "val_loss")} for row in result.history]
    record = {"losses": [loss.hex() for loss in result.losses], "history": timeless, "events": events}
    (out / "record.json").write_text(json.dumps(record))


def forked(*arguments: Any) -> int:
    """The exit status of a run in a separate process."""
    if (child := os.fork()) == 0:
        run(*arguments)  # an error propagates, with its traceback
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main() -> None:
    folder, shards, count, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    len(PackedImageLoader(shards, PACKING, batch_size=1, shuffle=True))  # compiles the planner once, without threads
    assert forked(folder / "whole", shards, 0) == 0
    events = json.loads((folder / "whole" / "record.json").read_text())["events"]
    for i, kill_at in enumerate(random.Random(seed).sample(range(1, events + 1), count)):
        status = forked(folder / f"killed-{i}", shards, kill_at)
        assert os.WIFSIGNALED(status), f"the run was to be killed at event {kill_at} of {events}, and ended"
        assert forked(folder / f"killed-{i}", shards, 0) == 0


if __name__ == "__main__":
    main()
