"""README.md and docs/ as their tests see them: blocks, commands, headings, links."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    begin, lines = 0, page.read_text().splitlines()
    language = ""
    for number, line in enumerate(lines, start=1):
        if not line.lstrip().startswith("```"):
            continue
        assert line == line.lstrip(), f"{page.name}:{number}: a fence is indented"
        if begin:
            yield Block(page, begin, language, "\n".join(lines[begin : number - 1]) + "\n")
            begin = 0
        else:
            begin, language = number, line[3:].strip()
    assert not begin, f"{page.name}:{begin}: a fence is not closed"


def commands_of(script: str) -> Iterator[str]:
    """The commands of a script, one after the other, with all of their lines; comments between them are left out."""
    command = ""
    for line in script.splitlines():
        if not command and (not line or line.startswith("#")):
            continue
        command += line + "\n"
        if not line.endswith("\\") and bash_error(command) == "":
            yield command
            command = ""
    assert not command, f"no end of: {command}"


def bash_error(script: str) -> str:
    result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    return result.stderr if result.returncode == 0 else result.stderr or "failed"


def anchors_of(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_of(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:", link)]
