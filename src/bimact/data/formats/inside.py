"""The files of a dataset, wherever links inside it lead."""

from __future__ import annotations

from pathlib import Path

from bimact.errors import UserError
from bimact.files import refuse_pointer


def real_file(root: Path, name: str) -> Path | None:
    """The file of a dataset's folder that has a name; None: there is none.

    Links may lead anywhere into the folder, and from a snapshot in a Hugging Face cache to the `blobs` beside it.

    Raises:
        UserError: if it is a link out of the dataset, or no ordinary file.
    """
    try:
        real = (root / name).resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise UserError(f"cannot read {root / name}: {getattr(error, 'strerror', None) or error}") from None
    if not any(real.is_relative_to(place) for place in _places(root)):
        raise UserError(f"{root / name} is a link that leaves the dataset: put the file itself there")
    if not real.is_file():
        raise UserError(f"{root / name} is no file: put the dataset's file there")
    refuse_pointer(real, root / name)
    return real


def _places(root: Path) -> list[Path]:
    """Where the files of a folder may really be."""
    real = root.resolve()
    caches = [folder.parent for folder in real.parents if folder.name == "snapshots"]
    return [real, *(cache / "blobs" for cache in caches if cache.name.startswith("datasets--"))]
