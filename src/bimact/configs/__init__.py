"""The configs that bimact comes with."""

from __future__ import annotations

from pathlib import Path

from bimact.errors import UserError
from bimact.files import expand_home

FOLDER = Path(__file__).parent
DEFAULT = "configs/policy_act.yaml"


def find_config(name: str | Path) -> Path:
    """A config's file: a path, or the name of one that bimact comes with (`policy_act`, `configs/policy_act.yaml`).

    Raises:
        UserError: if there is none.
    """
    path = existing_or_shipped(name)
    if path.is_file():
        return path
    names = ", ".join(sorted(entry.stem for entry in FOLDER.glob("*.yaml")))
    raise UserError(f"config file not found: {path.absolute()} (bimact comes with {names})")


def existing_or_shipped(name: str | Path) -> Path:
    """A path as it is, unless there is no such file, but bimact comes with one of this name: then that."""
    path = Path(expand_home(str(name)))
    shipped = FOLDER / f"{path.name.removesuffix('.yaml')}.yaml"
    is_name = path.parent in (Path(), Path("configs")) and not path.is_file()
    return shipped if is_name and shipped.is_file() else path
