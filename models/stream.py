"""`Stream`: a model's order of a batch's tokens, and attention within its units: images or samples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from patchnpack.models.attention import attention, masked_attention, unit_of_tokens
from patchnpack.packer.batch.packed_batch import PackedBatch

# B packs, L token slots per pack, K maximum images per pack, T tokens of the stream, N units (images, or in scope
# "sample" samples), Q queries (T or N), R prefix tokens per unit (class token, registers), H heads, E width of a head


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """A sequence of T tokens in one of two layouts.

    ```
    flat     a a a b b c c c c      valid tokens only, units end to end; lengths are known on the host
    dense    a a a b b . | c c c c . .      whole packs with padding (.): nothing needs to be known on the host, so
                                            shapes depend only on B, L and K, as compiling and exporting require
    ```

    Attributes:
        slots: int64 (T,), position of each token in the flattened B*L slots.
        images: int64 (T,), position of each token's image in the flattened B*K columns; in padding B*K, -1 or any
            image.
        columns: int64 (N,), position of each unit in the flattened B*K columns; B*K is a unit without tokens.
        unit: int64 (T,), number of each token's unit, 0 to N - 1; N is padding.
        lengths, cu_seqlens: tokens of each unit, and its start, int32 (N + 1,); flat layout only.
        packs: B in the dense layout, else 0.
        bound: of a flat stream that ends with padding, the largest possible length of a unit; else 0.
        backend: backend of `attention` in the flat layout.
    """

    slots: torch.Tensor
    images: torch.Tensor
    columns: torch.Tensor
    unit: torch.Tensor
    lengths: list[int] = field(default_factory=list)
    cu_seqlens: torch.Tensor | None = None
    packs: int = 0
    bound: int = 0
    backend: str = "dense"

    @staticmethod
    def flat(batch: PackedBatch, units: PackedBatch, backend: str) -> Stream:
        """The valid tokens of `batch`, whose units are the segments of `units`.

        For "split" on a CPU, units are sorted by length for speed.
        """
        slots, lengths, cu_seqlens = units.token_index, units.lengths, units.cu_seqlens
        (_, L), (_, K), columns = batch.segment_ids.shape, batch.image_mask.shape, units.column_index
        if backend == "split" and slots.device.type == "cpu":
            order = sorted(range(len(lengths)), key=lengths.__getitem__)
            *parts, padding = torch.split(slots, [*lengths, len(slots) - sum(lengths)])
            slots, columns = torch.cat([*(parts[i] for i in order), padding]), columns[order]
            lengths = [lengths[i] for i in order]
            cu_seqlens = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return Stream(
            slots=slots,
            images=slots // L * K + batch.segment_ids.flatten()[slots] - 1,
            columns=columns,
            unit=unit_of_tokens(cu_seqlens, len(slots)),
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            backend=backend,
            bound=units.seqlen_bound,
        )

    @staticmethod
    def dense(segment_ids: torch.Tensor, K: int, samples: torch.Tensor | None = None) -> Stream:
        """All slots of `segment_ids` (B, L), with B*K units, some of which may have no token.

        Units are images, or with `samples` (B, K), as in `PackedBatch`, samples.
        """
        (B, L), device = segment_ids.shape, segment_ids.device
        first = K * torch.arange(B, device=device)[:, None] - 1
        images = unit = torch.where(segment_ids > 0, segment_ids + first, B * K).flatten()
        if samples is not None:
            unit = torch.where(images < B * K, F.pad((samples + first).flatten(), (0, 1))[images], B * K)
        return Stream(
            slots=torch.arange(B * L, device=device),
            images=images,
            columns=torch.arange(B * K, device=device),
            unit=unit,
            packs=B,
        )

    def with_prefix(self, R: int) -> tuple[Stream, torch.Tensor, torch.Tensor]:
        """Add R tokens to each unit; also return the places of old (T,) and new (N, R) ones.

        `slots` and `images` stay those of the old tokens: the new ones have none.
        """
        N, T, device = self.columns.shape[0], self.slots.shape[0], self.unit.device
        token_T, starts, lengths = torch.arange(T, device=device), None, []
        if self.cu_seqlens is not None:
            starts = self.cu_seqlens + R * torch.arange(N + 1, dtype=torch.int32, device=device)
            first_N, lengths = starts[:-1], [length + R for length in self.lengths]
            old = token_T + (self.unit + 1).clamp(max=N) * R
        else:  # after the slots of each pack; columns without a unit get tokens, too, which see only each other
            K, L = N // self.packs, T // self.packs
            first_N = (self.columns // K + 1) * L + self.columns * R
            old = token_T + token_T // L * (K * R)
        new = first_N.long()[:, None] + torch.arange(R, device=device)
        unit = self.unit.new_empty(T + N * R).index_copy(0, old, self.unit)
        unit = unit.index_copy(0, new.flatten(), torch.arange(N, device=device).repeat_interleave(R))
        bound = self.bound and self.bound + R
        return replace(self, unit=unit, lengths=lengths, cu_seqlens=starts, bound=bound), old, new

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, one_query: bool = False) -> torch.Tensor:
        """Attention within units (`attention`): q (Q, H, E), k and v (T, H, E) -> (Q, H, E)."""
        if self.cu_seqlens is not None:
            how: Any = {name: getattr(self, name) for name in ("cu_seqlens", "lengths", "backend", "bound")}
            return attention(q, k, v, one_query=one_query, **how)
        keys_BL = self.unit.view(self.packs, -1)
        return masked_attention(q, k, v, self.columns.view(self.packs, -1) if one_query else keys_BL, keys_BL)
