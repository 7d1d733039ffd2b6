"""What a user did wrong, in one sentence."""

from __future__ import annotations


class UserError(Exception):
    """A wrong input, told in one clear sentence that says what to do.

    The command line prints the sentence without a traceback and exits with status 2.
    """
