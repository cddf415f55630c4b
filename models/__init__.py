"""First floor: a compact NaViT over `PackedBatch`. `patchnpack.trainer` trains it."""

from typing import TYPE_CHECKING, Any

from patchnpack.models.attention import attention_backend
from patchnpack.models.config import NaViTConfig
from patchnpack.models.features import Features, TokenMap, token_maps
from patchnpack.models.navit import DenseNaViT, NaViT, classification_loss

if TYPE_CHECKING:
    from patchnpack.trainer.train import train as train

__all__ = [
    "DenseNaViT",
    "Features",
    "NaViT",
    "NaViTConfig",
    "TokenMap",
    "attention_backend",
    "classification_loss",
    "token_maps",
]


def __getattr__(name: str) -> Any:
    """`train`, too, may be imported from here; the trainer stands a floor above, so only when it is asked for."""
    if name == "train":
        from patchnpack.trainer import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
