"""Text from strangers' files, made fit for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Names in a stranger's file must not steer the terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
