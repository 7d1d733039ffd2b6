"""What the commands' options share."""

from __future__ import annotations

import argparse
from typing import TypeAlias

from bimact.errors import UserError

# `bimact`, to which each command adds itself
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def image_size(text: str) -> tuple[int, int]:
    """`240x320` → (height, width)."""
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise UserError(f"--image_size is '{text}', it has to be height x width such as 240x320")
    return int(height), int(width)
