"""`Stream`: a model's order of a batch's tokens, and attention within its images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from patchnpack.models.attention import attention
from patchnpack.packer.batch.packed_batch import PackedBatch

# B packs, L token slots per pack, K maximum images per pack, N images, T tokens of the stream, Q queries (T or N),
# R prefix tokens per image (class token, registers), H heads, E width of a head


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """A sequence of T tokens in one of two layouts.

    ```
    flat     a a a b b c c c c      valid tokens only, images end to end; lengths are known on the host
    dense    a a a b b . | c c c c . .      whole packs with padding (.): nothing needs to be known on the host, so
                                            shapes depend only on B, L and K, as compiling and exporting require
    ```

    Attributes:
        slots: int64 (T,), position of each token in the flattened B*L slots.
        columns: int64 (N,), position of each image in the flattened B*K columns.
        image: int64 (T,), number of each token's image, 0 to N - 1; N is padding.
        lengths, cu_seqlens: tokens of each image, and its start, int32 (N + 1,); flat layout only.
        packs: B in the dense layout, else 0.
        backend: backend of `attention` in the flat layout.
    """

    slots: torch.Tensor
    columns: torch.Tensor
    image: torch.Tensor
    lengths: list[int] = field(default_factory=list)
    cu_seqlens: torch.Tensor | None = None
    packs: int = 0
    backend: str = "dense"

    @staticmethod
    def flat(batch: PackedBatch, backend: str) -> Stream:
        """The valid tokens of `batch`; for "split" on a CPU, sorted by image length for speed."""
        slots, lengths, cu_seqlens = batch.token_index, batch.lengths, batch.cu_seqlens
        if backend == "split" and slots.device.type == "cpu":
            order = sorted(range(len(lengths)), key=lengths.__getitem__)
            parts = torch.split(slots, lengths)
            slots = torch.cat([slots[:0], *(parts[i] for i in order)])
            lengths = [lengths[i] for i in order]
            cu_seqlens = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        first = slots[cu_seqlens[:-1]]
        (_, L), (_, K) = batch.segment_ids.shape, batch.image_mask.shape
        return Stream(
            slots=slots,
            columns=first // L * K + batch.segment_ids.flatten()[first] - 1,
            image=torch.repeat_interleave(cu_seqlens.diff().long(), output_size=len(slots)),
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            backend=backend,
        )

    @staticmethod
    def dense(segment_ids: torch.Tensor, K: int) -> Stream:
        """All slots of `segment_ids` (B, L), with B*K images, some of which may have no token."""
        (B, L), device = segment_ids.shape, segment_ids.device
        image = segment_ids + K * torch.arange(B, device=device)[:, None] - 1
        return Stream(
            slots=torch.arange(B * L, device=device),
            columns=torch.arange(B * K, device=device),
            image=torch.where(segment_ids > 0, image, B * K).flatten(),
            packs=B,
        )

    @property
    def rows(self) -> int:
        """One more than the largest possible number in `image`.

        That is N, plus one for padding in the dense layout.
        """
        return len(self.columns) + (self.packs > 0)

    def with_prefix(self, R: int) -> tuple[Stream, torch.Tensor, torch.Tensor]:
        """Add R tokens to each image.

        Returns the stream and the positions of old (T,) and new (N, R) tokens in it.

        `slots` stays that of the old tokens: the new ones have no slot.
        """
        N, T, device = len(self.columns), len(self.slots), self.image.device
        token_T, starts, lengths = torch.arange(T, device=device), None, []
        if self.cu_seqlens is not None:
            starts = self.cu_seqlens + R * torch.arange(N + 1, dtype=torch.int32, device=device)
            first_N, lengths = starts[:-1], [length + R for length in self.lengths]
            old = token_T + (self.image + 1) * R
        else:  # after the slots of each pack; columns without an image get tokens, too, which see only each other
            K, L = N // self.packs, T // self.packs
            first_N = (self.columns // K + 1) * L + self.columns * R
            old = token_T + token_T // L * (K * R)
        new = first_N.long()[:, None] + torch.arange(R, device=device)
        image = self.image.new_empty(T + N * R).index_copy(0, old, self.image)
        image = image.index_copy(0, new.flatten(), torch.arange(N, device=device).repeat_interleave(R))
        return replace(self, image=image, lengths=lengths, cu_seqlens=starts), old, new

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, one_query: bool = False) -> torch.Tensor:
        """Attention within images: q (Q, H, E), k and v (T, H, E) -> (Q, H, E).

        See the function `attention`.
        """
        if self.cu_seqlens is not None:
            return attention(
                q, k, v, cu_seqlens=self.cu_seqlens, lengths=self.lengths, one_query=one_query, backend=self.backend
            )
        keys_BL = self.image.view(self.packs, -1)
        queries_BQ = self.columns.view(self.packs, -1) if one_query else keys_BL
        mask_BQL = queries_BQ[:, :, None] == keys_BL[:, None]
        if one_query:  # a softmax over no token is NaN, and so is its gradient
            mask_BQL = mask_BQL | ~mask_BQL.any(-1, keepdim=True)
        q_BHQE, k_BHLE, v_BHLE = (x.unflatten(0, (self.packs, -1)).transpose(1, 2) for x in (q, k, v))
        out_BHQE = F.scaled_dot_product_attention(q_BHQE, k_BHLE, v_BHLE, attn_mask=mask_BQL[:, None])
        return out_BHQE.transpose(1, 2).flatten(0, 1)
