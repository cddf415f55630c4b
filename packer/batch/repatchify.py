"""`repatchify`: the images of a batch cut into patches of another size."""

from __future__ import annotations

import torch

from patchnpack.packer.batch.packed_batch import PackedBatch

# N images of a batch, T tokens of all of them, P patch size, C channels


def repatchify(batch: PackedBatch, patch_size: int) -> PackedBatch:
    """Cut the images of a batch into patches of another size: one pack of all N images, in order, and their samples.

    A side that is not a multiple of the new size is padded with 0, as with `Native(edge="pad")`. Labels are not copied.

    Args:
        batch: a batch on the CPU without dropped tokens.
        patch_size: patch size of the result, in pixels.

    Raises:
        ValueError: a token was dropped, so pixels are missing.
    """
    P, new_P, N = batch.patch_size, patch_size, batch.num_images
    lengths = torch.tensor(batch.lengths, dtype=torch.int64)
    grids = batch.grids[batch.image_mask].long()  # (N, 2)
    if len(wrong := (grids.prod(-1) != lengths).nonzero()):
        i = int(wrong[0])
        raise ValueError(
            f"an image has {int(lengths[i])} of its {int(grids[i].prod())} tokens, but a teacher of patch size {new_P} "
            f"needs all pixels; drop no tokens (fill='trim' also does), or use patch size {new_P}"
        )
    new_grids = -(-grids * P // new_P)
    new_lengths = new_grids.prod(-1)
    total, channels = int(new_lengths.sum()), batch.patches.shape[-1] // P**2
    image_T, image_t = (torch.repeat_interleave(torch.arange(N), each) for each in (lengths, new_lengths))
    first = new_lengths.cumsum(0) - new_lengths
    x, y = (batch.coords.flatten(0, 1)[batch.token_index].long().T[..., None, None] * P).unbind()
    x, y = x + torch.arange(P), y + torch.arange(P)[:, None]  # (T, 1, P) and (T, P, 1): a pixel's place in its image
    token = first[image_T][:, None, None] + y // new_P * new_grids[image_T, 0][:, None, None] + x // new_P
    place = (token * new_P + y % new_P) * new_P + x % new_P
    pixels = torch.zeros(total * new_P**2, channels, dtype=batch.patches.dtype)
    pixels[place.flatten()] = batch.patches.flatten(0, 1)[batch.token_index].view(-1, channels)
    index_t, across = torch.arange(total) - first[image_t], new_grids[image_t, 0]
    coords = torch.stack([index_t % across, index_t // across], -1)
    return PackedBatch(
        patches=pixels.view(1, total, -1),
        segment_ids=(image_t + 1)[None].int(),
        coords=coords[None].int(),
        grids=new_grids[None].int(),
        image_sizes=batch.image_sizes[batch.image_mask][None],
        image_mask=torch.ones(1, N, dtype=torch.bool),
        labels=torch.full((1, N), -100),
        rows=batch.rows[batch.image_mask][None],
        samples=torch.from_numpy(batch.sample_numbers() + 1).int()[None],
        frames=batch.frames[batch.image_mask][None],
        keys=[[key for keys in batch.keys for key in keys]],
        patch_size=new_P,
    )
