"""`Setting` and `Sweep`: the configurations of a sweep and their results."""

from __future__ import annotations

from dataclasses import dataclass

from patchnpack.packer.analysis.length_search import LengthSearch
from patchnpack.packer.binpacking.algorithms import Algorithm
from patchnpack.packer.config import Fill, Packing

# A length that a larger share of the samples exceeds is not advised: it pads little because it removes tokens.
MAX_OVERSIZE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One configuration of a sweep, and its result.

    Attributes:
        patch_size: P, in pixels.
        seq_len: L, token slots in a pack.
        algorithm: packing algorithm.
        lookahead: R, number of images that it chooses from; 1 for next_fit.
        fill: use of leftover slots: the packing's own, or "undrop" where the algorithm cannot trim or rescale.
        samples: samples in packs.
        images: images in packs.
        oversize: samples of more than L tokens or `max_images` images.
        undersize: samples with an image smaller than a patch.
        skipped: samples that were skipped, as oversize or undersize or for too few frames.
        lost: share of the tokens that the limit L removes, by shrinking, dropping or skipping, compared with no limit.
        packs: number of packs of L slots.
        tokens: slots that hold a token.
        packs_next_fit: packs that next-fit needs for the same samples.
        slots_longest: slots of the same samples padded to the longest.
        slots_bucketed: slots of the same samples padded to the longest of their bucket, with 8 buckets of similar
            length.
        at_most_images: packs that hold `max_images` images and are not full.
        attention_cost: sum of the squared token counts of the images, or of the samples (`Packing.scope`).
        model_imbalance: cost of the costliest of the packs that run in parallel over their mean, after balancing.
        pack_bytes: bytes of one pack in a batch.
        packing_seconds_per_million: seconds on one core to pack a million such samples, once measured.
        current: whether this is the swept packing's own configuration.
    """

    patch_size: int
    seq_len: int
    algorithm: Algorithm
    lookahead: int
    fill: Fill
    samples: int
    images: int
    oversize: int
    undersize: int
    skipped: int
    lost: float
    packs: int
    tokens: int
    packs_next_fit: int
    slots_longest: int
    slots_bucketed: int
    at_most_images: int
    attention_cost: int
    model_imbalance: float
    pack_bytes: int
    packing_seconds_per_million: float
    current: bool = False

    @property
    def slots(self) -> int:
        """Total token slots."""
        return self.packs * self.seq_len

    @property
    def padding(self) -> float:
        """Share of the slots that hold no token."""
        return 1 - self.tokens / self.slots

    @property
    def images_per_pack(self) -> float:
        """Mean number of images in a pack."""
        return self.images / self.packs

    @property
    def saved_next_fit(self) -> float:
        """Share of next-fit's slots that this setting saves; negative where next-fit needs fewer."""
        return 1 - self.packs / self.packs_next_fit

    @property
    def saved_longest(self) -> float:
        """Share of the slots of padding to the longest that this setting saves."""
        return 1 - self.slots / self.slots_longest

    @property
    def saved_bucketed(self) -> float:
        """Share of the slots of bucketing by length that is saved; negative where it needs fewer."""
        return 1 - self.slots / self.slots_bucketed


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """The result of a sweep on n samples.

    Attributes:
        packing: the configuration that all settings share.
        samples: n.
        ranks, width: ranks and model width that `Setting.model_imbalance` is for.
        settings: the settings, by patch size, sequence length, algorithm and lookahead.
        searches: for each patch size, the search for the sequence lengths; empty where these were given.
        seconds: duration of the sweep.
    """

    packing: Packing
    samples: int
    ranks: int
    width: int
    settings: tuple[Setting, ...]
    searches: tuple[LengthSearch, ...]
    seconds: float

    @property
    def item(self) -> str:
        """What is packed: "sample" where any has several images, otherwise "image"."""
        return "sample" if any(setting.images > setting.samples for setting in self.settings) else "image"

    @property
    def current(self) -> Setting | None:
        """The setting of the packing itself; None where it has several patch sizes."""
        return next((setting for setting in self.settings if setting.current), None)
