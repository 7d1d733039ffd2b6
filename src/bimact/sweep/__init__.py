"""Hyperparameter search: a sweep file in W&B's syntax, run by Optuna with a training process per trial."""
