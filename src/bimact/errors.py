"""Errors of users, and text from elsewhere in messages."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

_FOREIGN_ERRORS = (  # what drivers raise, besides errors of the operating system
    "aiohttp.ClientError",
    "botocore.exceptions.BotoCoreError",
    "botocore.exceptions.ClientError",
    "gcsfs.retry.HttpError",
    "google.auth.exceptions.GoogleAuthError",
    "httpx.HTTPError",
    "httpx2.HTTPError",
    "requests.RequestException",
)


class UserError(Exception):
    """A wrong input, described in one clear sentence that says what to do.

    The command line prints the sentence without a traceback and exits with status 2.

    Attributes:
        reason: what is wrong, without the file and what to do, for lists that name these once; else the sentence.
    """

    def __init__(self, sentence: str, reason: str | None = None) -> None:
        super().__init__(sentence)
        self.reason = sentence if reason is None else reason


def in_words(error: BaseException, most: int = 300) -> str:
    """A library's error message as part of a sentence: one line of printable characters, of a limited length."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(error))
    return " ".join(text.split())[:most]


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of a library's error message, without its full stop; the type's name if it is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most].rstrip(".")


def printable(text: str) -> str:
    """A text for a terminal: names in an untrusted file must not contain control sequences."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def without_folder(text: str, folder: Path) -> str:
    """A sentence that names files in a folder by their names inside it."""
    return text.replace(f"{folder}/", "")


def some_of(names: Sequence[str], most: int = 10) -> str:
    """The first of some names, and how many more there are, as a part of a sentence."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def library_errors() -> tuple[type[BaseException], ...]:
    """What fsspec, the Hugging Face hub's client and the drivers that are loaded raise."""
    found = (
        getattr(sys.modules.get(name.rpartition(".")[0]), name.rpartition(".")[2], None) for name in _FOREIGN_ERRORS
    )
    return (OSError, ValueError, RuntimeError, asyncio.TimeoutError, *(error for error in found if error is not None))


def in_quotes(texts: Sequence[str], most: int = 10) -> str:
    """Texts of users as a sentence lists them: 'pour tea', 'open the jar'."""
    return some_of([f"'{text}'" for text in texts], most)
