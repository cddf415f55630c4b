"""First floor: a compact NaViT over `PackedBatch`, and its trainer."""

from patchnpack.models.attention import attention_backend
from patchnpack.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from patchnpack.models.config import NaViTConfig, TrainConfig
from patchnpack.models.evaluate import autocast, autocast_dtype, evaluate
from patchnpack.models.features import Features, TokenMap, token_maps
from patchnpack.models.navit import DenseNaViT, NaViT, classification_loss
from patchnpack.models.train import TrainResult, learning_rate, train

__all__ = [
    "Checkpoint",
    "DenseNaViT",
    "Features",
    "NaViT",
    "NaViTConfig",
    "TokenMap",
    "TrainConfig",
    "TrainResult",
    "attention_backend",
    "autocast",
    "autocast_dtype",
    "classification_loss",
    "evaluate",
    "learning_rate",
    "load_checkpoint",
    "save_checkpoint",
    "token_maps",
    "train",
]
