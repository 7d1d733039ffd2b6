"""Demonstrations as a policy's settings want them."""

from __future__ import annotations

from pathlib import Path

from bimact.config import Config
from bimact.data.episodes import Episodes
from bimact.data.opening import arrays_of, open_source
from bimact.data.selection import ACTION, STATE, SelectedSource, Selection
from bimact.encoder.base import input_size
from bimact.errors import UserError


def open_demonstrations(config: Config, path: str | Path) -> Episodes:
    """Open a dataset, the columns and cameras that a policy uses, with images in the size that its encoder needs.

    Raises:
        UserError: as `open_dataset`; or if the dataset has another state or action than the config says.
    """
    source = Selection.of(config).applied_to(open_source(path, cache_dir=config.cache_dir))
    _refuse_other_sizes(config, source)
    return arrays_of(source, config.cache_dir, input_size(config.encoder))


def _refuse_other_sizes(config: Config, source: SelectedSource) -> None:
    """See that state and action are as the config says, before hours go into decoding images."""
    for setting, wanted, size in (
        ("state_dim", config.state_dim, source.columns[STATE].size),
        ("action_dim", config.action_dim, source.columns[ACTION].size),
    ):
        if wanted not in (None, size):
            raise UserError(
                f"{setting} is {wanted} in the config, but {source.path} has {size}: set {setting} to {size} or null, "
                f"or choose by {setting}s"
            )
