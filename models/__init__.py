"""First floor: a compact NaViT over `PackedBatch`, and its trainer."""

from patchnpack.models.attention import attention_backend
from patchnpack.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from patchnpack.models.config import NaViTConfig
from patchnpack.models.contrastive import Contrastive, TextTower, sigmoid_loss
from patchnpack.models.distill import Distillation, repatchify
from patchnpack.models.evaluate import autocast, autocast_dtype, evaluate
from patchnpack.models.features import Features, TokenMap, token_maps
from patchnpack.models.losses import Classification, Objective, Outcome
from patchnpack.models.mixing import mix
from patchnpack.models.navit import DenseNaViT, NaViT, classification_loss
from patchnpack.models.optim import learning_rate
from patchnpack.models.train import TrainResult, train
from patchnpack.models.train_config import TrainConfig

__all__ = [
    "Checkpoint",
    "Classification",
    "Contrastive",
    "DenseNaViT",
    "Distillation",
    "Features",
    "NaViT",
    "NaViTConfig",
    "Objective",
    "Outcome",
    "TextTower",
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
    "mix",
    "repatchify",
    "save_checkpoint",
    "sigmoid_loss",
    "token_maps",
    "train",
]
