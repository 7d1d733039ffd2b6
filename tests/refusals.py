"""What a user is told of a dataset in which something cannot be used."""

from __future__ import annotations

from bimact.data.selection import Selection
from bimact.data.source import Source
from bimact.errors import UserError


def read_as_training_does(source: Source) -> None:
    """Read all that a training would use.

    Raises:
        UserError: if an episode cannot be used; or telling what is left out of a dataset that can be read.
    """
    if not source.state_keys or not source.action_keys:
        for number, episode in enumerate(source.episodes):
            source.read_columns(number, tuple(source.columns))
            for camera in source.cameras:
                assert sum(1 for _ in source.read_frames(number, camera, range(episode.length))) == episode.length
    selected = Selection().applied_to(source)
    selected.refuse_damaged()
    for number, episode in enumerate(selected.episodes):
        selected.read_columns(number, ("state", "action"))
        selected.read_timestamps(number)
        for camera in selected.cameras:
            assert sum(1 for _ in selected.read_frames(number, camera, range(episode.length))) == episode.length
    told = [f"{entry.name} {entry.reason}" for entry in selected.left_out]
    told += [episode.sentence for episode in selected.unusable]
    if told:
        raise UserError(f"{source.path}: {'; '.join(told)}")


def skipped(source: Source) -> tuple[str, ...]:
    """A sentence for each episode that cannot be used, whatever is chosen or by what is chosen as a rule."""
    return tuple(episode.sentence for episode in Selection().applied_to(source).unusable)
