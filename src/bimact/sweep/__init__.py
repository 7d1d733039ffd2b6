"""Searches of settings: a sweep file in W&B's syntax, run by Optuna, a training process for each trial."""
