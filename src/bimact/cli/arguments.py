"""What the commands' options share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, TypeAlias

from bimact.errors import UserError

if TYPE_CHECKING:
    from bimact.data.selection import Selection

# `bimact`, to which each command adds itself
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def image_size(text: str) -> tuple[int, int]:
    """`240x320` → (height, width)."""
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise UserError(f"--image_size is '{text}', it has to be height x width such as 240x320")
    return int(height), int(width)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that choose a part of a dataset; they are settings of `bimact train` too."""
    group = parser.add_argument_group("the part of the dataset")
    group.add_argument("--cameras", metavar="A,B", help='which cameras (default: all; "": none)')
    group.add_argument("--state_keys", metavar="A,B", help="columns that make up the state (default: the format's)")
    group.add_argument("--action_keys", metavar="A,B", help="columns that make up the action (default: the format's)")
    group.add_argument("--state_dims", metavar="DIMS", help="dimensions of the state, such as 0:14 or 0:7,13:20")
    group.add_argument("--action_dims", metavar="DIMS", help="dimensions of the action, such as 0:14")
    add_episodes(group)
    group.add_argument("--max_episodes", metavar="N", type=int, help="of these, the first N")
    group.add_argument(
        "--filter_key", metavar="NAME", help="episodes that the dataset lists under this name (robomimic)"
    )
    group.add_argument("--fps", metavar="F", type=float, help="steps a second: resampled if the dataset has others")
    group.add_argument("--color_order", choices=("rgb", "bgr"), help="of JPEG images whose order the files leave open")


def add_episodes(group: argparse._ActionsContainer) -> None:
    """The options that choose episodes."""
    group.add_argument("--episodes", metavar="E", help="which episodes, by number or name: 0:40,45 (default: all)")
    group.add_argument("--exclude_episodes", metavar="E", help="episodes to leave out, such as 3,17")
    group.add_argument(
        "--skip_unreadable",
        metavar="true",
        nargs="?",
        const="true",
        choices=("true", "false"),
        default="false",
        help="leave out the episodes that are damaged, instead of stopping",
    )


def selection_of(options: argparse.Namespace) -> Selection | None:
    """The part that `add_selection`'s options choose; None if none is given."""
    from bimact.config import list_of_text
    from bimact.data.selection import Selection

    def names(text: str | None) -> tuple[str, ...] | None:
        return None if text is None else tuple(list_of_text(text))

    if options.max_episodes is not None and options.max_episodes < 1:
        raise UserError(f"--max_episodes is {options.max_episodes}, it has to be at least 1")
    if options.fps is not None and not 0 < options.fps < 1e6:
        raise UserError(f"--fps is {options.fps:g}, it has to be a number above 0")
    selection = Selection(
        cameras=names(options.cameras),
        state_keys=names(options.state_keys),
        action_keys=names(options.action_keys),
        state_dims=options.state_dims,
        action_dims=options.action_dims,
        episodes=names(options.episodes),
        exclude_episodes=names(options.exclude_episodes),
        max_episodes=options.max_episodes,
        skip_unreadable=options.skip_unreadable == "true",
        fps=options.fps,
        color_order=options.color_order,
        filter_key=options.filter_key,
    )
    return None if selection == Selection() else selection
