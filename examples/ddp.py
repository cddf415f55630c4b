"""Train a NaViT on several processes: a plain loop around DistributedDataParallel that stops and goes on exactly.

    python examples/shapes.py shapes
    torchrun --standalone --nproc-per-node 2 examples/ddp.py 'shapes/train-{000000..000003}.tar' --out runs/ddp

Each rank makes its own loader; rank and world size come from torchrun. Every rank gets equally many batches, but not
equally many images: bad ones, and the end of an epoch, leave some ranks less, or nothing. So the loss is the mean over
the images of all ranks, and the gradient the one that a single process would compute from all of them.

`--out` receives `checkpoint.pt` every `--save-every` steps and after each epoch. The same command started again goes on
from there with the batches that were left: on two ranks, bit for bit as if nothing had happened; on more, gloo may add
up in another order after a start, so that the last bits of a sum can differ.

Expected, on two cores in about 20 seconds: a line an epoch, of which the first and the fifth are about

    epoch 0: 11 steps, loss 1.060, 480 images + 0 bad + 0 skipped = 480 in the index
    epoch 4: 11 steps, loss 0.156, 480 images + 0 bad + 0 skipped = 480 in the index
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from patchnpack import ErrorPolicy, FitTokens, PackedImageLoader, Packing
from patchnpack.models import NaViT, NaViTConfig, classification_loss


def make_loader(options: argparse.Namespace) -> PackedImageLoader:
    """This rank's part of the shards."""
    return PackedImageLoader(
        options.shards,
        Packing(seq_len=options.seq_len, resolution=FitTokens(options.tokens)),
        batch_size=options.batch_size,
        shuffle=True,
        label="cls",
        errors=ErrorPolicy(max_rate=1),  # however many images are bad, no rank stops alone
    )


def over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's tensor."""
    tensor = tensor.detach().clone()
    dist.all_reduce(tensor)
    return tensor


def met(loader: PackedImageLoader) -> torch.Tensor:
    """Images, bad images and skipped ones that this rank has met since its loader was made, int64 (3,)."""
    stats = loader.stats()
    return torch.tensor([stats["images"], stats["bad_images"], sum(stats["skipped"].values())])


def save(path: Path, content: dict[str, Any]) -> None:
    """Rank 0 writes the checkpoint, whole or not at all; the loader's state is the same on every rank."""
    if dist.get_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
    dist.barrier()  # no rank goes on, or ends, before it is there


def train(options: argparse.Namespace) -> None:
    """Trains for the epochs that are left; every rank calls it."""
    loader, world_size = make_loader(options), dist.get_world_size()
    torch.manual_seed(options.seed)
    model = NaViT(NaViTConfig(num_classes=loader.num_classes, width=options.width, depth=options.depth))
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    path, first, step = options.out / "checkpoint.pt", 0, 0
    before = torch.zeros(3, dtype=torch.int64)  # what an interrupted epoch had met, over all ranks
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        first, step, before = saved["epoch"], saved["step"], saved["met"]
    if first >= options.epochs:
        if dist.get_rank() == 0:
            print(f"{path} has {first} epochs behind it already; give more --epochs, or another --out")
        return
    # DDP never lets go of its group, so it has one of its own, and the one of `over_ranks` can end with its threads:
    # one that still holds a tensor of Python's when Python ends would abort the process.
    ddp = DistributedDataParallel(model, process_group=dist.new_group())

    def checkpoint(epoch: int, so_far: torch.Tensor, state: dict[str, Any]) -> None:
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": state}
        save(path, {**content, "epoch": epoch, "step": step, "met": so_far})

    for epoch in range(first, options.epochs):
        loader.set_epoch(epoch)  # one that was interrupted goes on where it stood
        begin, steps, sums = met(loader), len(loader), torch.zeros(2, dtype=torch.float64)
        for i, batch in enumerate(loader, 1):
            loss, images = classification_loss(ddp(batch), batch)
            total, count = over_ranks(torch.stack([loss.double(), images.double()]))
            optimizer.zero_grad()
            # DDP divides the sum of gradients by the number of ranks; wanted is the number of images of all ranks.
            (loss * world_size / count.clamp(min=1)).backward()
            optimizer.step()
            sums, step = sums + torch.stack([total, count]), step + 1
            if step % options.save_every == 0 and i < steps:  # the end of an epoch has a checkpoint of its own
                so_far = before + over_ranks(met(loader) - begin)
                checkpoint(epoch, so_far, loader.state_dict(after=batch))
        images, bad, skipped = (before + over_ranks(met(loader) - begin)).tolist()
        rows = len(loader.index)
        if dist.get_rank() == 0:
            print(
                f"epoch {epoch}: {steps} steps, loss {sums[0] / sums[1].clamp(min=1):.3f}, {images} images + {bad} bad "
                f"+ {skipped} skipped = {rows} in the index",
                flush=True,
            )
        assert images + bad + skipped == rows, "an image was lost or came twice"
        before = torch.zeros_like(before)
        checkpoint(epoch + 1, before, loader.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=2, help="packs a step and rank")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=144, help="patches of an image at most")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("start it with torchrun: torchrun --standalone --nproc-per-node 2 examples/ddp.py ...")
    dist.init_process_group("gloo")
    try:
        train(options)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
