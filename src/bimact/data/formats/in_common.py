"""What cameras and columns are in most episodes, and what they are in the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from bimact.data.source import Camera, Column, Fault

_Form = TypeVar("_Form", Camera, Column)
_ABSENT = Fault("is not there")


def usual_forms(
    contents: Sequence[Mapping[str, _Form]],
    faults: Sequence[Mapping[str, Fault]] = (),
) -> tuple[dict[str, _Form], dict[str, dict[int, _Form | Fault]]]:
    """Compare what episodes hold.

    Args:
        contents: of each episode, by name.
        faults: of each episode: why something is not among its contents; what is not named there either is absent.

    Returns:
        name → what it is in most episodes that have it; and name → position of an episode → what it is there, where it
        is not so. Columns of one size are the same; their type is the one that holds the numbers of all of them.
    """
    usual: dict[str, _Form] = {}
    others: dict[str, dict[int, _Form | Fault]] = {}
    for name in dict.fromkeys(name for content in contents for name in content):
        absent = [of.get(name, _ABSENT) for of in faults] or [_ABSENT] * len(contents)
        forms: list[_Form | Fault] = [content.get(name, fault) for content, fault in zip(contents, absent)]
        dtypes: dict[int, set[str]] = {}
        for form in set(forms):
            if isinstance(form, Column):
                dtypes.setdefault(form.size, set()).add(form.dtype)
        if any(len(of_size) > 1 for of_size in dtypes.values()):
            common = {size: str(np.result_type(*map(np.dtype, of_size))) for size, of_size in dtypes.items()}
            forms = [
                replace(form, dtype=common[form.size]) if isinstance(form, Column) else form  # type: ignore[call-arg]
                for form in forms
            ]
        counts = Counter(form for form in forms if not isinstance(form, Fault))
        usual[name] = counts.most_common(1)[0][0]
        odd = {number: form for number, form in enumerate(forms) if form != usual[name]}
        if odd:
            others[name] = odd
    return usual, others
