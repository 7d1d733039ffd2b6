"""`from train.act_trainer import ActTrainer`; the code lives in `bimact`."""

from bimact.training.act_trainer import ActTrainer

__all__ = ["ActTrainer"]
