"""A policy's weights in a file: of bimact, LeRobot or the original ACT, in the layouts of common trainers.

Trainers save a state dict alone or beside an optimizer, under `model_state_dict`, `nets` and other names, with prefixes
of wrappers (`module.` of DataParallel, `_orig_mod.` of torch.compile), and with averages of the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bimact.errors import UserError
from bimact.weights_file import in_short, read_content, state_dicts


@dataclass(frozen=True)
class Software:
    """A software, by its names of a policy's tensors.

    Attributes:
        name: for messages.
        anchor: a tensor that all of its policies have, and no others.
        module: where in a whole policy the network is.
    """

    name: str
    anchor: str
    module: str = ""


BIMACT = Software("bimact", "queries.weight")
LEROBOT = Software("LeRobot's ACT", "decoder_pos_embed.weight", "model.")
ORIGINAL = Software("the original ACT", "query_embed.weight", "model.")

_SOFTWARE = (BIMACT, LEROBOT, ORIGINAL)
# Parts of names that come from what was wrapped around a module: DataParallel, torch.compile, FSDP and its companion.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_USUAL_KEYS = {"state_dict", "model_state_dict", "model_state", "model", "module", "nets", "net", "policy", "weights"}
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?|shadow|polyak)(_|$)")
_COUNTERS = {"n_averaged", "num_updates", "decay", "initted", "step"}  # of averaged weights
_OTHER_POLICIES = {  # by a part of a tensor's name
    "noise_pred_net": "a diffusion policy",
    "diffusion": "a diffusion policy",
    "unet": "a diffusion policy",
    "paligemma": "a vision-language-action policy",
    "vlm": "a vision-language-action policy",
    "exp_avg": "an optimizer",
}


@dataclass(frozen=True)
class PolicyWeights:
    """The weights of one policy.

    Attributes:
        software: the owner of their names.
        tensors: under the names of that software's own state dict.
        notes: sentences on what was chosen or left out.
    """

    software: Software
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A policy's weights at one place of a file; `others` are names beside them that are not the policy's."""

    software: Software
    place: str
    is_usual: bool
    is_average: bool
    tensors: dict[str, Tensor]
    others: list[str]


def read_policy_weights(path: Path, wanted: Software | None = None) -> PolicyWeights:
    """Find the weights of an ACT policy in a file of torch or safetensors; no code in it is run.

    Where a file has an average of the weights over training (EMA) besides the weights of the last step, the average
    is taken, as is usual for inference; tensors that are not averaged, such as running statistics, comes from the
    weights.

    Args:
        path: the file, or the index of a sharded one.
        wanted: the software that the policy has to be of; None: any.

    Raises:
        UserError: if the file cannot be read, or holds no such policy or several; the sentence says what it holds.
    """
    content = read_content(path)
    places = state_dicts(content)
    found = [candidate for keys, tensors in places.items() for candidate in _candidates(keys, tensors, path)]
    if not found:
        raise UserError(f"{path} holds no policy of ACT: {_what_it_holds(content, places)}")
    usual = [candidate for candidate in found if candidate.is_usual and not candidate.is_average]
    raw = usual or [candidate for candidate in found if not candidate.is_average]
    averages = [candidate for candidate in found if candidate.is_average]
    if len(raw) > 1 or len(averages) > 1:
        several = raw if len(raw) > 1 else averages
        raise UserError(
            f"{path} holds several policies ({in_short([candidate.place for candidate in several], 5)}): save the one "
            "that you want alone, by torch.save(content[KEY], FILE)"
        )
    chosen = (raw or averages)[0]
    tensors, notes = chosen.tensors, []
    if len(found) > len(raw) + len(averages):
        also = [candidate.place for candidate in found if candidate not in (*raw, *averages)]
        notes.append(f"the policy under {chosen.place!a} is taken, not {in_short(also)}")
    if raw and averages:
        average = averages[0]
        if average.software is chosen.software and average.tensors.keys() <= tensors.keys():
            tensors = {**tensors, **average.tensors}
            notes.append(
                f"the averaged weights are taken ({average.place!a}), not those beside them ({chosen.place!a})"
            )
        else:
            notes.append(f"the averaged weights ({average.place!a}) are left out: they are of another network")
    elif raw:
        kinds = (Mapping, list, tuple)
        nameless = [name for name in map(str, content) if _is_average(name) and isinstance(content.get(name), kinds)]
        if nameless:
            notes.append(f"the averaged weights ({in_short(nameless)}) are left out: they have no names")
    if chosen.others:
        notes.append(f"tensors that are not the policy's are left out: {in_short(chosen.others)}")
    if wanted is not None and chosen.software is not wanted:
        if wanted is BIMACT:
            way = f"make a run of it by `bimact convert-checkpoint {path} DST`, and give that"
        elif chosen.software is BIMACT:
            way = "give the folder of its run"
        else:
            way = "give it by its own file name"
        raise UserError(f"{path} holds a policy of {chosen.software.name}, not of {wanted.name}: {way}")
    return PolicyWeights(chosen.software, tensors, tuple(notes))


def _candidates(keys: tuple[str, ...], state: Mapping[str, Tensor], path: Path) -> Iterator[_Candidate]:
    """The policies in one state dict: mostly one or none, but weights and their average may share it."""
    groups: dict[str, dict[str, Tensor]] = {}  # by the part of the name that tells an average, or ""
    for name, value in state.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        averaged = next((part for part in parts[:-1] if _is_average(part)), "")
        if averaged:
            parts.remove(averaged)
        group = groups.setdefault(averaged, {})
        if ".".join(parts) in group:
            raise UserError(f"{path} holds {ascii('.'.join(parts))[:80]} twice, with and without a wrapper's name")
        group[".".join(parts)] = value
    for averaged, group in groups.items():
        for software in _SOFTWARE:
            for name in group:
                if name != software.anchor and not name.endswith(f".{software.anchor}"):
                    continue
                # What is before the network's own names, and what is before the policy's: `nets.model.` and `nets.`
                to_network = name.removesuffix(software.anchor)
                outer = to_network.removesuffix(software.module)
                whole = outer != to_network or not software.module
                mine = {n.removeprefix(outer): value for n, value in group.items() if n.startswith(outer)}
                mine = {n: value for n, value in mine.items() if n not in _COUNTERS}
                if not whole:  # the network was saved without the policy around it
                    mine = {software.module + n: value for n, value in mine.items()}
                yield _Candidate(
                    software,
                    place=".".join(part for part in (*keys, averaged, outer.rstrip(".")) if part) or "the top",
                    is_usual=all(key in _USUAL_KEYS for key in keys),
                    is_average=any(map(_is_average, (*keys, averaged))),
                    tensors=mine,
                    others=[n for n in group if not n.startswith(outer)],
                )


def _is_average(name: str) -> bool:
    return bool(_AVERAGED.search(name.lower()))


def _what_it_holds(content: Any, places: Mapping[tuple[str, ...], dict[str, Tensor]]) -> str:
    """For a file without a policy of ACT, the end of a sentence."""
    if not isinstance(content, Mapping):
        return f"it holds no state dict but a {type(content).__name__}"
    if not places:
        keys = in_short([str(key) for key in content], 5)
        return f"it has no tensors with names, only {keys}" if keys else "it is an empty dictionary"
    names = max(map(list, places.values()), key=len)
    parts = {part.lower() for name in names for part in re.split(r"[./]", name)}
    known = next((kind for part, kind in _OTHER_POLICIES.items() if part in parts), None)
    of = "" if known is None else f", as those of {known}"
    expected = _either(f"'{one.module}{one.anchor}' ({one.name})" for one in _SOFTWARE)
    return f"its tensors are named {in_short(names)}{of}, and none is {expected}"


def _either(texts: Iterable[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} or {last}"
