"""A YAML file as its author wrote it: each value with its text and its line.

YAML 1.1 reads `007` and `2024_10_05` as numbers, and `yes` as a boolean. The file does not say which of them are meant
as text; the reader, who knows, uses `Written.text` there.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bimact.errors import UserError, in_words
from bimact.files import refuse_pointer

try:
    from yaml import CSafeLoader as _BaseLoader
except ImportError:  # PyYAML without its C library
    from yaml import SafeLoader as _BaseLoader

_MOST_VALUES = 10_000  # in a file, with aliases resolved
_MERGE, _VALUE, _TEXT = (f"tag:yaml.org,2002:{name}" for name in ("merge", "value", "str"))
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Written:
    """A value in a YAML file.

    Attributes:
        value: in YAML: None, a boolean, a number, text, a list of `Written`, or a dict of them by name.
        text: of a single value, as it was written, without quotes; empty for a list or a dict.
        line: of the value, or of its key, from 1.
        count: number of values that it consists of.
    """

    value: Any
    text: str
    line: int
    count: int = 1

    @property
    def kind(self) -> str:
        """Its type, as part of a sentence."""
        if isinstance(self.value, (list, dict)):
            return "a list" if isinstance(self.value, list) else "a group of keys"
        return "a single value"

    def plain(self) -> Any:
        """The value without lines, as from another YAML reader."""
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        if isinstance(self.value, dict):
            return {name: item.plain() for name, item in self.value.items()}
        return self.value


class _Loader(_BaseLoader):  # type: ignore[misc]  # PyYAML has no types
    """YAML 1.1 as OmegaConf reads it: 1e-6 is a number, a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path, what: str) -> Written | None:
    """Read a YAML file; no code in it is run.

    Args:
        path: of the file.
        what: kind of file, for messages, such as "config file".

    Returns:
        its content; None if there is none.

    Raises:
        UserError: if it cannot be read, with the line of the fault.
    """
    refuse_pointer(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{what} not found: {path.absolute()}") from None
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}") from None
    if content.startswith(_UTF16):
        raise UserError(f"{path}, line 1: the file is UTF-16: save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        raise UserError(f"{path}, line {line}: the file is not UTF-8 (byte 0x{byte:02x}): save it as UTF-8") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Written | None:
    """The content of a YAML text, which messages call `where`.

    Raises:
        UserError: if it is not YAML, has a key twice, or has tags for more than plain values.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Reader(loader, where).read(node)
    except yaml.YAMLError as error:
        raise UserError(_fault(error, text, where)) from None
    except RecursionError:
        raise UserError(f"{where} cannot be read: its lists and keys are nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def _fault(error: yaml.YAMLError, text: str, where: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:  # a character that YAML does not allow
        found = yaml.reader.Reader.NON_PRINTABLE.search(text)
        line = text.count("\n", 0, found.start() if found else 0) + 1
        character = f"the character {found[0]!a}" if found else in_words(error)
        return f"{where}, line {line}: {character} is not allowed in YAML: remove it"
    lines = text.splitlines() or [""]
    line = lines[min(mark.line, len(lines) - 1)]
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{where}, line {mark.line + 1}: the line is indented by a tab: indent it by spaces"
    problem = getattr(error, "problem", None) or "it is cut short"
    if problem.startswith("but "):
        problem = f"{getattr(error, 'context', '')} {problem}"
    number = min(mark.line, len(lines) - 1) + 1
    return (
        f"{where}, line {number}: this cannot be read as YAML ({in_words(Exception(problem))}); text that holds "
        ": # , [ ] { } & * ! | > % @ or quotes has to be in quotes"
    )


class _Reader:
    """Builds `Written` from nodes; an alias gives the same object as its anchor."""

    def __init__(self, loader: Any, where: str) -> None:
        self._loader = loader
        self._where = where
        self._made: dict[int, Written | None] = {}  # None: in progress

    def read(self, node: yaml.Node) -> Written:
        if id(node) in self._made:
            made = self._made[id(node)]
            if made is None:
                raise self._refused(node, "it refers to itself by an alias: write it out")
            return made
        self._made[id(node)] = None
        if isinstance(node, yaml.MappingNode):
            written = self._group(node)
        elif isinstance(node, yaml.SequenceNode):
            items = [self.read(item) for item in node.value]
            written = Written(items, "", _line(node), 1 + sum(item.count for item in items))
        else:
            written = self._single(node)
        if written.count > _MOST_VALUES:
            raise self._refused(node, f"with its aliases resolved it has more than {_MOST_VALUES} values: shorten it")
        self._made[id(node)] = written
        return written

    def _single(self, node: yaml.Node) -> Written:
        if node.tag in (_MERGE, _VALUE):  # `<<` and `=`
            return Written(node.value, node.value, _line(node))
        try:
            value = self._loader.construct_object(node)
        except ValueError:  # such as 0x_
            value = node.value
        except yaml.constructor.ConstructorError:
            value = node
        if not isinstance(value, (str, bool, int, float, type(None))):
            raise self._refused(node, f"the tag {node.tag} is not understood: remove it")
        return Written(value, node.value, _line(node))

    def _group(self, node: yaml.MappingNode) -> Written:
        """A dict; keys of the group override those merged by `<<`."""
        own: dict[str, Written] = {}
        merged: dict[str, Written] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for source in sources:
                    content = self.read(source).value
                    if not isinstance(content, dict):
                        raise self._refused(source, "`<<` needs a group of keys, or a list of such groups")
                    merged = {**content, **merged}  # the first one counts
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise self._refused(key, "a key has to be a name")
            if key.value in own:
                raise self._refused(
                    key, f"'{key.value}' is given twice, before in line {own[key.value].line}: remove one"
                )
            own[key.value] = dataclasses.replace(self.read(value), line=_line(key))
        content = {**merged, **own}
        return Written(content, "", _line(node), 1 + sum(item.count for item in content.values()))

    def _refused(self, node: yaml.Node, sentence: str) -> UserError:
        return UserError(f"{self._where}, line {_line(node)}: {sentence}")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
