"""Tensors by name in an untrusted file of torch or safetensors. No code in a file is run."""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimact.errors import UserError, in_words
from bimact.files import refuse_pointer

INDEX = ".index.json"  # suffix of a sharded file's index, as Hugging Face's libraries write it
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")
_OF_OPTIMIZERS = re.compile(r"(^|_)(optims?|optimizers?|(lr_)?schedulers?|scaler)(_|$)", re.IGNORECASE)
_LARGEST_INDEX = 50_000_000  # bytes
_DAMAGE = (  # raised by torch and zipfile for a foreign, damaged or malicious file
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    RuntimeError,
    ValueError,  # and UnicodeDecodeError
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    MemoryError,
    OSError,
)


class _Ignored:
    """Replaces objects that many checkpoints hold besides weights, and ignores their content."""

    def __new__(cls, *arguments: Any) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, name: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    extend = append


# Settings and numbers, by the names in pickles of NumPy 1 and 2, Python up to 3.13, OmegaConf 2 and Lightning. Anything
# that is neither listed here nor one of PyTorch's own parts of a tensor is refused.
_IGNORED = (
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"pathlib{part}.{kind}Path" for part in ("", "._local") for kind in ("Posix", "Windows", "PurePosix")),
    *("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.timedelta", "typing.Any"),
    *(f"builtins.{kind}" for kind in ("bool", "float", "int", "str")),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "String")),
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)
_SAFE_GLOBALS: list[Any] = [
    *((_Ignored, name) for name in _IGNORED),
    *((kind, f"{kind.__module__}.{kind.__name__}") for kind in (dict, list, defaultdict)),
]


def read_content(path: Path) -> Any:
    """The content of a file of torch or safetensors, on the CPU: usually nested dictionaries with tensors.

    Args:
        path: the file, or the index of a sharded one (`model.safetensors.index.json`).

    Raises:
        UserError: if the file is missing, damaged, a git-lfs pointer or would run code.
    """
    if not path.is_file():
        raise UserError(f"weights file not found: {path.absolute()}")
    if path.name.endswith(INDEX):
        weight_map, tensors = _weight_map(path), {}
        for file in sorted(set(weight_map.values())):
            content = _read_one(path.with_name(file))
            for name in (name for name, its_file in weight_map.items() if its_file == file):
                if not (isinstance(content, Mapping) and isinstance(content.get(name), Tensor)):
                    raise UserError(f"{path.with_name(file)} has no tensor {ascii(name)[:80]}, which {path} names")
                tensors[name] = content[name]
        return tensors
    shard = _SHARD.fullmatch(path.name)
    if shard:
        index = path.with_name(f"{shard[1]}{shard[3]}{INDEX}")
        raise UserError(f"{path} is one of {int(shard[2])} files that belong together: give their index, {index.name}")
    return _read_one(path)


def size_of(path: Path) -> int:
    """Size in bytes of a file, or of all files in the index of a sharded one."""
    files = set(_weight_map(path).values()) if path.name.endswith(INDEX) else {path.name}
    return sum(path.with_name(name).stat().st_size for name in files)


def _read_one(path: Path) -> Any:
    refuse_pointer(path)
    with path.open("rb") as file:
        head = file.read(9)
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: copy it again from where it came from")
    # By content, since files are renamed: torch's begin with the first bytes of a zip or a pickle, safetensors' with
    # the length of a JSON object.
    is_torch = head.startswith((b"PK", b"\x80"))
    is_safetensors = head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size
    if is_safetensors or (path.suffix == ".safetensors" and not is_torch):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, LookupError) as error:
            raise UserError(f"{path} is not a readable safetensors file: {in_words(error, 200)}") from None
    return _read_torch(path)


def _read_torch(path: Path) -> Any:
    try:
        names: list[str] = []
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise UserError(
                f"{path} is a TorchScript archive, which is a program: if you trust it, save its weights "
                "alone, by torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt'), and name that file"
            )
        with warnings.catch_warnings(), torch.serialization.safe_globals(_SAFE_GLOBALS):
            warnings.simplefilter("ignore", UserWarning)  # of storages in old files
            with path.open("rb") as file:  # by name, torch would take some files for safetensors
                return torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named is None:
            raise UserError(f"{path} is not a file of weights that torch can read, or it is damaged") from error
        raise UserError(
            f"{path} holds more than weights ({named[1]}), and a file that is loaded must not run code: save "
            "the state dict alone, by torch.save(model.state_dict(), FILE), and name that file"
        ) from error


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor → file in the index's folder.

    Raises:
        UserError: if the index cannot be read, or names anything outside of its folder.
    """
    refuse_pointer(index)
    try:
        content = json.loads(index.read_bytes()) if index.stat().st_size <= _LARGEST_INDEX else None
    except (ValueError, RecursionError):
        content = None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} is not an index of sharded weights: it has no weight_map")
    folder = index.parent.resolve()
    places = [folder]
    for parent in folder.parents:
        if parent.name == "snapshots":  # of Hugging Face's cache, where all files are links to blobs
            places.append(parent.parent / "blobs")
    for name in set(map(str, weight_map.values())):
        try:
            real = (folder / name).resolve()
            is_there = real.is_file()
        except (OSError, RuntimeError, ValueError):  # a loop of links, or an invalid name
            real, is_there = Path("/"), False
        if Path(name).name != name or real.parent not in places:
            raise UserError(f"{index} names {ascii(name)[:80]}, which is not a file of its folder: do not trust it")
        if not is_there:
            raise UserError(f"{index} names {ascii(name)[:80]}, which is missing: copy it there too")
    return {name: str(file) for name, file in weight_map.items()}


def state_dicts(content: Any) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """All possible state dicts in a file's content: path of keys → tensors by name.

    Optimizer states are left out.
    """
    found: dict[tuple[str, ...], dict[str, Tensor]] = {}
    seen: set[int] = set()

    def search(content: Any, keys: tuple[str, ...]) -> None:
        if not isinstance(content, Mapping) or id(content) in seen or len(keys) > 4:
            return
        seen.add(id(content))  # a dictionary in a file may contain itself
        named = {name: value for name, value in content.items() if isinstance(name, str)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        if tensors:
            found[keys] = tensors
        for name, value in named.items():
            if not _OF_OPTIMIZERS.search(name):
                search(value, (*keys, name))

    search(content, ())
    return found


def in_short(names: Iterator[str] | list[str], most: int = 3) -> str:
    """The first few names in a file, for a message: 'a', 'b', 'c' and 12 more."""
    names = list(names)
    few = ", ".join(ascii(name)[:80] for name in names[:most])
    return f"{few} and {len(names) - most} more" if len(names) > most else few
