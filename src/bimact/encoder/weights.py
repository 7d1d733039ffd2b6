"""Pretrained weights of encoders: which ones, from which file, downloaded or not, and into which tensors."""

from __future__ import annotations

import difflib
import re
import socket
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor, nn

from bimact.config import EncoderConfig
from bimact.errors import UserError, first_line
from bimact.weights_file import read_content, state_dicts

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".torch", ".pkl", ".tar", ".npz")
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
_CONNECT_TIMEOUT = 5.0  # seconds until the model hub counts as unreachable
_READ_TIMEOUT = 30.0  # seconds without a byte after which a download is given up
_WAYS_OUT = "or encoder.pretrained: null for random weights"


@dataclass(frozen=True)
class WeightsSource:
    """What `encoder.pretrained` means: a tag of the library, a local file, or (both None) random weights."""

    tag: str | None = None
    file: Path | None = None


def choose_source(config: EncoderConfig, model: str, tags: Sequence[str], usual: str | None) -> WeightsSource:
    """Read `encoder.pretrained`.

    Args:
        config: with `weights_from_checkpoint`, text that is not a tag is a file, which need not exist.
        model: the weights' model, for messages.
        tags: that the library knows for this model; `-` and `_`, small and capital letters are the same.
        usual: the tag that `true` stands for; None: there is none.

    Raises:
        UserError: for an unknown tag, naming near ones, or a file that is not there.
    """
    wanted = config.pretrained
    if wanted is None or wanted is False:
        return WeightsSource()
    if wanted is True:
        if usual is None and not config.weights_from_checkpoint:
            raise UserError(
                f"there are no pretrained weights for {model}: set encoder.pretrained to a local file: "
                f"/path/to/file, {_WAYS_OUT}"
            )
        return WeightsSource(tag=usual)
    if not isinstance(wanted, (str, Path)):
        raise UserError(f"encoder.pretrained is {wanted!r}, it has to be a tag, a path, true or null")
    for tag in tags:
        if _clean(tag) == _clean(str(wanted)):
            return WeightsSource(tag=tag)
    path = Path(wanted).expanduser()
    if path.is_file() or config.weights_from_checkpoint:
        return WeightsSource(file=path)
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        raise UserError(f"weights file not found: {path.absolute()} (encoder.pretrained)")
    raise UserError(f"{model} has no pretrained weights '{wanted}'; {near_names(str(wanted), tags)}")


def near_names(name: str, names: Sequence[str]) -> str:
    """`did you mean …?` with the names nearest to a wrong one, or `there is …` with the first few."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    few = ", ".join(names[:8]) + (" and more" if len(names) > 8 else "")
    return f"there is {few or 'none'}"


def _clean(tag: str) -> str:
    return tag.lower().replace("-", "_")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a file that torch or safetensors wrote, on the CPU; no code in the file is run.

    It is looked for under `state_dict`, `model_state_dict`, `model_state` or `model`, then at the top, then anywhere.

    Args:
        path: the file, or the index of a sharded one.

    Raises:
        UserError: if the file is missing, damaged, holds no state dict or would run code.
    """
    if not path.is_file():
        raise UserError(f"weights file not found: {path.absolute()} (encoder.pretrained)")
    content = read_content(path)
    state = _find_state_dict(content)
    if state is None and len(others := state_dicts(content)) == 1:  # under an unknown name
        [state] = others.values()
    if state is None:
        raise UserError(f"{path} holds no state dict: encoder.pretrained needs a file of named tensors")
    return state


def _find_state_dict(content: Any, depth: int = 3) -> dict[str, Tensor] | None:
    """The first mapping that holds tensors by name, down to a maximum depth."""
    if depth == 0 or not isinstance(content, Mapping):
        return None
    for wrapper in _WRAPPERS:
        inner = _find_state_dict(content.get(wrapper), depth - 1)
        if inner is not None:
            return inner
    state = {name: value for name, value in content.items() if isinstance(value, Tensor) and isinstance(name, str)}
    return state or None


def strip_prefix(state: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The tensors below the prefix (`module.`, `backbone.encoder.`, `visual.`, …) that has most wanted names.

    If no prefix has half of the wanted names, the file names things in another way and is left as it is.
    """
    wanted = set(wanted)
    counts: Counter[str] = Counter()
    for name in state:
        for start in (0, *(match.end() for match in re.finditer(r"\.", name))):
            counts[name[:start]] += name[start:] in wanted
    prefix, count = counts.most_common(1)[0] if counts else ("", 0)
    if 2 * count < len(wanted):
        return dict(state)
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def misfits(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Names of a module's tensors that a state dict lacks or has in another shape.

    Batch norm's count of batches is left out: old files do not have it, and it is not used here.
    """
    return [
        name
        for name, own in module.state_dict().items()
        if not name.endswith("num_batches_tracked") and (name not in state or state[name].shape != own.shape)
    ]


def load_all(module: nn.Module, state: Mapping[str, Tensor], path: Path | str, model: str) -> None:
    """Copy a state dict into a module: each of its tensors has to be there; what else is there is ignored.

    Raises:
        UserError: if one is missing or has another shape.
    """
    wrong = misfits(module, state)
    if wrong:
        own = module.state_dict()
        shape = f"has the shape {tuple(state[wrong[0]].shape)}" if wrong[0] in state else "is missing"
        raise UserError(
            f"{path} does not fit {model}: {len(wrong)} of its {len(own)} tensors are missing there or have "
            f"another shape, as '{wrong[0]}' of shape {tuple(own[wrong[0]].shape)}, which {shape} in the file"
        )
    module.load_state_dict({name: state[name] for name in module.state_dict() if name in state}, strict=False)


@contextmanager
def download(wanted: str, hub: bool, advice: str = "") -> Iterator[None]:
    """Time limits and one error for the downloads of a library in this context.

    Args:
        wanted: the download, for the message.
        hub: whether it comes from the model hub. If that cannot be reached, its library looks into its cache
            alone: by itself it tries again for 23 s per file (huggingface_hub 2.4).
        advice: what else to set where the same weights are given as a local file.

    Raises:
        UserError: if it cannot be had, whatever the reason.
    """
    offline = hub and not _hub_is_reachable()
    timeout = socket.getdefaulttimeout()
    # Without it urllib, which torch.hub downloads by, waits forever.
    socket.setdefaulttimeout(timeout or _READ_TIMEOUT)
    try:
        with _hub_offline(offline):
            yield
    except _failures() as error:
        is_hub = offline and isinstance(error, OSError)
        reason = "no connection to the model hub" if is_hub else first_line(error)
        raise UserError(
            f"cannot get {wanted} ({reason}): give a local file by encoder.pretrained: /path/to/file"
            f"{advice}, {_WAYS_OUT}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _hub_is_reachable() -> bool:
    """Whether the hub's host takes a connection; taken for granted behind a proxy."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or {address.scheme, "all"} & set(urllib.request.getproxies()):
        return True
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), _CONNECT_TIMEOUT).close()
    except OSError:
        return False
    return True


@contextmanager
def _hub_offline(offline: bool) -> Iterator[None]:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _failures() -> tuple[type[Exception], ...]:
    """What a failed download raises: of urllib, requests, httpx, torch.hub, open_clip, timm and the hub.

    The hub's errors descend from those of its HTTP library, whichever it uses: their parents are taken too.
    """
    from huggingface_hub.errors import HfHubHTTPError

    parents = [kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception) and kind is not Exception]
    return (OSError, HTTPException, RuntimeError, ValueError, *parents)
