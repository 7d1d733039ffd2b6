"""What a user did wrong, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """A wrong input, told in one clear sentence that says what to do.

    The command line prints the sentence without a traceback and exits with status 2.
    """


def in_words(error: BaseException, most: int = 300) -> str:
    """What a library's error says, as a part of a sentence: one line, nothing that steers a terminal, not too long."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(error))
    return " ".join(text.split())[:most]


def printable(text: str) -> str:
    """A text for a terminal: names in a stranger's file must not steer it."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def some_of(names: Sequence[str], most: int = 10) -> str:
    """The first of some names, and how many more there are, as a part of a sentence."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
