"""Sentences about what is wrong, whatever a stranger's file has put into them."""

from __future__ import annotations

from bimact.errors import in_words, printable


def test_what_a_library_says_becomes_one_line_of_a_sentence() -> None:
    assert in_words(ValueError("bad\n  header \x1b[31m\x00 here")) == "bad header [31m here"
    assert len(in_words(ValueError("x" * 10_000))) == 300


def test_text_that_would_steer_a_terminal_is_spelled() -> None:
    assert printable("episode \x1b]0;title\x07 näme\n") == "episode \\x1b]0;title\\x07 näme\\n"
    assert printable("left\u202eright") == "left\\u202eright"
