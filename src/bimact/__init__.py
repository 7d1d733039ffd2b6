"""bimact: train ACT on bimanual demonstrations, and prove the policy by its success rate."""

__version__ = "0.1.0"
