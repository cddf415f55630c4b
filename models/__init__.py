"""Models: a compact NaViT over `PackedBatch`. `patchnpack.trainer` trains it."""

from patchnpack.models.attention import attention_backend
from patchnpack.models.config import NaViTConfig
from patchnpack.models.features import Features, TokenMap, token_maps
from patchnpack.models.navit import DenseNaViT, NaViT, classification_loss

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
