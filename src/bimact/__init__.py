"""bimact: train ACT on bimanual demonstrations, and prove the policy by its success rate.

The Python API: `load_policy`, `open_dataset`, `train`, `evaluate`, `compare`, `push`, `push_dataset`. Each is imported
when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "Evaluation",
    "Policy",
    "Run",
    "UserError",
    "compare",
    "evaluate",
    "load_policy",
    "open_dataset",
    "push",
    "push_dataset",
    "train",
]

if TYPE_CHECKING:
    from bimact.api import (
        Comparison,
        Evaluation,
        compare,
        evaluate,
        load_policy,
        open_dataset,
        push,
        push_dataset,
        train,
    )
    from bimact.errors import UserError
    from bimact.policy.inference import Policy
    from bimact.run_directory import Run

_MODULES = {
    "Comparison": "bimact.api",
    "Evaluation": "bimact.api",
    "Policy": "bimact.policy.inference",
    "Run": "bimact.run_directory",
    "UserError": "bimact.errors",
    "compare": "bimact.api",
    "evaluate": "bimact.api",
    "load_policy": "bimact.api",
    "open_dataset": "bimact.api",
    "push": "bimact.api",
    "push_dataset": "bimact.api",
    "train": "bimact.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bimact' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
