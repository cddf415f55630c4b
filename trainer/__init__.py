"""Trainer: training and evaluation of the models of `patchnpack.models`, and their objectives."""

from patchnpack.packer.batch.mixing import mix
from patchnpack.packer.batch.repatchify import repatchify
from patchnpack.trainer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from patchnpack.trainer.evaluate import autocast, autocast_dtype, evaluate
from patchnpack.trainer.objectives.contrastive import Contrastive, TextTower, sigmoid_loss
from patchnpack.trainer.objectives.distill import Distillation
from patchnpack.trainer.objectives.losses import Classification, Objective, Outcome
from patchnpack.trainer.optim import learning_rate
from patchnpack.trainer.train import TrainResult, train
from patchnpack.trainer.train_config import TrainConfig

__all__ = [
    "Checkpoint",
    "Classification",
    "Contrastive",
    "Distillation",
    "Objective",
    "Outcome",
    "TextTower",
    "TrainConfig",
    "TrainResult",
    "autocast",
    "autocast_dtype",
    "evaluate",
    "learning_rate",
    "load_checkpoint",
    "mix",
    "repatchify",
    "save_checkpoint",
    "sigmoid_loss",
    "train",
]
