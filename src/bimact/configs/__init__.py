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
    path = Path(expand_home(str(name)))
    if path.is_file():
        return path
    shipped = FOLDER / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.parent in (Path(), Path("configs")) and shipped.is_file():
        return shipped
    names = ", ".join(sorted(entry.stem for entry in FOLDER.glob("*.yaml")))
    raise UserError(f"config file not found: {path.absolute()} (bimact comes with {names})")
