"""Untrusted JSON files: values are checked before they are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bimact.errors import UserError
from bimact.files import refuse_pointer

_LARGEST = 10_000_000  # bytes
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


class JsonObject:
    """An object in a JSON file.

    Args:
        path: of the file, for messages.
        content: the object.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.content = content

    @classmethod
    def read(cls, path: Path) -> JsonObject:
        """The object in a file.

        Raises:
            UserError: if there is none.
        """
        if not path.is_file():
            raise UserError(f"{path} is missing")
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path} is larger than any file of settings")
        refuse_pointer(path)
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):  # ValueError: also of its encoding
            raise UserError(f"{path} is not readable JSON: copy it again from where it came from") from None
        if not isinstance(content, dict):
            raise UserError(f"{path} holds no JSON object")
        return cls(path, content)

    def get(self, name: str, kind: type, default: Any) -> Any:
        """The value of a name, which has to be of a type; the default where it is absent or null.

        Raises:
            UserError: if it is of another type.
        """
        value = self.content.get(name)
        if value is None:
            return default
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{self.path}: {ascii(name)[:80]} is {ascii(value)[:80]}, it has to be {_KINDS[kind]}")
        return value

    def object(self, name: str) -> JsonObject:
        """The object under a name; an empty one where it is absent or null."""
        return JsonObject(self.path, self.get(name, dict, {}))

    def objects(self, name: str) -> list[JsonObject]:
        """The list of objects under a name."""
        values = self.get(name, list, [])
        return [JsonObject(self.path, value if isinstance(value, dict) else {}) for value in values]
