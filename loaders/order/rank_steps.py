"""Steps: the packs of an epoch in groups of B per rank."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Literal

from patchnpack.loaders.order.order import Order, Pack
from patchnpack.loaders.order.state import Cursor
from patchnpack.packer import PatchSizes, Plan

# B packs in a batch, W ranks

Even = Literal["pad", "drop"]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The order cut into steps of B * W packs. All ranks together take one step.

    Attributes:
        order: the order of packs.
        batch_size: B.
        world_size: W.
        even: "pad" fills an incomplete last step with empty packs, "drop" leaves it out.

    Raises:
        ValueError: the blocks of the streams or patch sizes do not match the steps.
    """

    order: Order
    batch_size: int
    world_size: int
    even: Even
    _positions: dict[int, tuple[int, int]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        block, step, streams = self.order.block, self.packs, self.order.num_streams
        if block % streams:
            raise ValueError(
                f"a block has {block} packs, which num_streams {streams} does not divide; choose batch_size, "
                "num_streams or block so that it does"
            )
        if self._sizes and block % step:
            raise ValueError(
                f"block is {block}, which a step of {step} packs does not divide; with PatchSizes all packs of a step "
                "have one patch size: choose batch_size or block so that it does"
            )

    @property
    def packs(self) -> int:
        """Packs of a complete step."""
        return self.batch_size * self.world_size

    @property
    def _sizes(self) -> bool:
        return isinstance(self.order.packing.patch_size, PatchSizes)

    def count(self, begin: Cursor) -> int:
        """Return the number of steps from a cursor to the end of its epoch."""
        padded, full = self._ends(begin.epoch)
        end, position, steps = padded if self.even == "pad" else full, begin.position, 0
        while self._sizes and position % self.order.block and position < end:
            wanted = self._wanted(position)
            steps, position = steps + (self.even == "pad" or position + wanted <= end), position + wanted
        left = max(0, end - position)
        return steps + (-(-left // self.packs) if self.even == "pad" else left // self.packs)

    def groups(
        self, begin: Cursor, on_plan: Callable[[Plan], None], on_tail: Callable[[Pack], None]
    ) -> Iterator[tuple[list[Pack], int]]:
        """Yield the packs of each step and the position after it, from a cursor to the end of its epoch.

        The packs of a step alternate between ranks: pack i belongs to rank i % W.

        Args:
            begin: where to start.
            on_plan: called with each plan before the first step that may need it, for plans made from the cursor on.
            on_tail: called with each pack that is left out at the end.

        Raises:
            ValueError: `even="drop"`, and the epoch has no complete step.
        """
        position, full, planned = begin.position, None, deque[Plan]()
        packs = self.order.packs(begin.epoch, planned.append)
        if self.even == "drop":
            full = self._ends(begin.epoch)[1]
            if full < self.packs:
                raise ValueError(
                    f"even='drop' leaves no batch: a step takes {self.packs} packs over all ranks, more than the epoch "
                    "holds; use even='pad' or a smaller batch_size"
                )
        deque(islice(packs, position), maxlen=0)
        planned.clear()  # the run that used these packs has counted what their plans leave out
        available = packs if full is None else islice(packs, max(0, full - position))
        while group := list(islice(available, wanted := self._wanted(position))):
            while planned:
                on_plan(planned.popleft())
            if full is not None and len(group) < wanted:
                packs = chain(group, packs)
                break
            position += wanted
            yield [*group, *[Pack(group[0].patch_size)] * (self.packs - len(group))], position
        for pack in packs:
            on_tail(pack)
        while planned:
            on_plan(planned.popleft())

    def _wanted(self, position: int) -> int:
        """Return the packs of the step at `position`; with `PatchSizes` a step ends where its block does."""
        return min(self.packs, self.order.block - position % self.order.block) if self._sizes else self.packs

    def _ends(self, epoch: int) -> tuple[int, int]:
        if epoch not in self._positions:
            self._positions[epoch] = self.order.positions(epoch)
        return self._positions[epoch]
