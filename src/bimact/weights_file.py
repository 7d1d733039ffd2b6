"""Tensors by name in a file of torch or safetensors, whoever saved it. Nothing in a file is run."""

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

INDEX = ".index.json"  # how the name of a sharded file's index ends, as Hugging Face's libraries write it
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")
_OF_OPTIMIZERS = re.compile(r"(^|_)(optims?|optimizers?|(lr_)?schedulers?|scaler)(_|$)", re.IGNORECASE)
_LARGEST_INDEX = 50_000_000  # bytes
_DAMAGE = (  # what the readers of torch and zipfile raise on a foreign, damaged or hostile file
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
    """Stands in for what many a checkpoint holds beside its weights, and does nothing with what the file gives it."""

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


# Settings and figures, in the names that pickles of NumPy 1 and 2, Python 3.13 and its predecessors, OmegaConf 2 and
# Lightning use. What is not listed here, and is none of PyTorch's own parts of a tensor, is refused.
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
    """What a file of torch or safetensors holds, on the CPU: mostly a dictionary with tensors, at any depth.

    Args:
        path: the file, or the index of a sharded one (`model.safetensors.index.json`).

    Raises:
        UserError: if the file is missing, damaged, a git-lfs pointer or would run code.
    """
    if not path.is_file():
        raise UserError(f"weights file not found: {path.absolute()}")
    if path.name.endswith(INDEX):
        return _read_shards(path)
    shard = _SHARD.fullmatch(path.name)
    if shard:
        index = path.with_name(f"{shard[1]}{shard[3]}{INDEX}")
        raise UserError(f"{path} is one of {int(shard[2])} files that belong together: give their index, {index.name}")
    return _read_one(path)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all that a sharded one's index names."""
    files = set(_weight_map(path).values()) if path.name.endswith(INDEX) else {path.name}
    return sum(path.with_name(name).stat().st_size for name in files)


def _read_one(path: Path) -> Any:
    refuse_pointer(path)
    with path.open("rb") as file:
        head = file.read(9)
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: copy it again from where it came from")
    # The content decides, since files are renamed: torch's begin with a zip's or a pickle's first byte, safetensors'
    # with the length of a JSON object.
    is_torch = head.startswith((b"PK", b"\x80"))
    is_safetensors = head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size
    if is_safetensors or (path.suffix == ".safetensors" and not is_torch):
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        raise UserError(f"{path} is no readable safetensors file: {in_words(error, 200)}") from None


def _read_torch(path: Path) -> Any:
    try:
        if _is_torchscript(path):
            raise UserError(
                f"{path} is a TorchScript archive, which is a program: if you trust it, save its weights "
                "alone, by torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt'), and name that file"
            )
        with warnings.catch_warnings(), torch.serialization.safe_globals(_SAFE_GLOBALS):
            warnings.simplefilter("ignore", UserWarning)  # of storages in old files
            with path.open("rb") as file:  # by its name torch would take some files for safetensors
                return torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named is None:
            raise UserError(f"{path} is no file of weights that torch can read, or it is damaged") from error
        raise UserError(
            f"{path} holds more than weights ({named[1]}), and a file that is loaded must not run code: save "
            "the state dict alone, by torch.save(model.state_dict(), FILE), and name that file"
        ) from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor → file, as an index says; the files are those of its folder.

    Raises:
        UserError: if it cannot be read, or names anything outside of the folder.
    """
    refuse_pointer(index)
    try:
        content = json.loads(index.read_bytes()) if index.stat().st_size <= _LARGEST_INDEX else None
    except (ValueError, RecursionError):
        content = None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} is no index of sharded weights: it has no weight_map")
    folder = index.parent.resolve()
    places = [folder]
    for parent in folder.parents:
        if parent.name == "snapshots":  # of Hugging Face's cache, where all files are links to the blobs beside
            places.append(parent.parent / "blobs")
    for name in set(map(str, weight_map.values())):
        try:
            real = (folder / name).resolve()
            is_there = real.is_file()
        except (OSError, RuntimeError, ValueError):  # a loop of links, or no possible name
            real, is_there = Path("/"), False
        if Path(name).name != name or real.parent not in places:
            raise UserError(f"{index} names {ascii(name)[:80]}, which is no file of its folder: do not trust it")
        if not is_there:
            raise UserError(f"{index} names {ascii(name)[:80]}, which is missing: copy it there too")
    return {name: str(file) for name, file in weight_map.items()}


def _read_shards(index: Path) -> dict[str, Tensor]:
    weight_map = _weight_map(index)
    tensors = {}
    for file in sorted(set(weight_map.values())):
        content = _read_one(index.with_name(file))
        for name, of in weight_map.items():
            if of == file:
                if not (isinstance(content, Mapping) and isinstance(content.get(name), Tensor)):
                    raise UserError(f"{index.with_name(file)} has no tensor {ascii(name)[:80]}, which {index} names")
                tensors[name] = content[name]
    return tensors


def state_dicts(content: Any) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """All that could be a state dict in a file's content: the keys that lead there → the tensors by name.

    Optimizers' states are left out.
    """
    return dict(_state_dicts(content, (), set()))


def _state_dicts(
    content: Any, keys: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    if not isinstance(content, Mapping) or id(content) in seen or len(keys) > 4:
        return
    seen.add(id(content))  # a file can hold a dictionary that holds itself
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield keys, tensors
    for name, value in content.items():
        if isinstance(name, str) and not _OF_OPTIMIZERS.search(name):
            yield from _state_dicts(value, (*keys, name), seen)


def in_short(names: Iterator[str] | list[str], most: int = 3) -> str:
    """The first few of a file's names for a message: 'a', 'b', 'c' and 12 more."""
    names = list(names)
    few = ", ".join(ascii(name)[:80] for name in names[:most])
    return f"{few} and {len(names) - most} more" if len(names) > most else few
