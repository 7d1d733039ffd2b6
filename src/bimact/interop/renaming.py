"""Other implementations of ACT have the same parameters under other names: the two-way map between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

# Within a layer of the transformer, theirs and ours: both others follow DETR's names.
_IN_LAYERS = (
    (".multihead_attn.", ".cross_attn."),
    (".linear1.", ".feed_forward.linear1."),
    (".linear2.", ".feed_forward.linear2."),
)
_CLS, _IMAGE_PROJECTION = "posterior.cls", "image_proj.weight"


class Renaming:
    """The names of another implementation ↔ ours, and the two tensors that have another shape there.

    Args:
        prefixes: how names begin, theirs and ours; the first that fits counts.
        left_out: how those of their names begin that we do not have.
        owner: whose names they are, for messages.
    """

    def __init__(self, prefixes: Sequence[tuple[str, str]], left_out: Sequence[str], owner: str) -> None:
        self._prefixes, self._left_out, self._owner = tuple(prefixes), tuple(left_out), owner

    def to_ours(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their state dict → the part of an `ActPolicy`'s that it covers.

        Raises:
            KeyError: for an unknown name.
        """
        renamed = {}
        for name, value in weights.items():
            if name.startswith(self._left_out):
                continue
            ours = _exchange(name, self._prefixes, _IN_LAYERS)
            if ours is None:
                raise KeyError(f"'{name}' is no parameter of {self._owner}")
            if ours == _CLS and value.ndim == 2:
                value = value[None]  # (1, D) → (1, 1, D)
            if ours == _IMAGE_PROJECTION and value.shape[2:] == (1, 1):
                value = value[:, :, 0, 0]  # a 1 × 1 convolution is a linear map of each place
            renamed[ours] = value
        return renamed

    def to_theirs(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An `ActPolicy`'s state dict → theirs; tensors that they do not have are left out."""
        prefixes = [(ours, theirs) for theirs, ours in self._prefixes]
        within = [(ours, theirs) for theirs, ours in _IN_LAYERS]
        renamed = {}
        for name, value in weights.items():
            theirs = _exchange(name, prefixes, within)
            if theirs is not None:
                value = value[0] if name == _CLS else value
                renamed[theirs] = value[:, :, None, None] if name == _IMAGE_PROJECTION else value
        return renamed


def _exchange(name: str, prefixes: Sequence[tuple[str, str]], within: Sequence[tuple[str, str]]) -> str | None:
    for old, new in prefixes:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            for old_part, new_part in within:
                name = name.replace(old_part, new_part)
            return name
    return None
