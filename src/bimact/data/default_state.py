"""The proprioceptive state where the format does not define it: chosen by whole words of the columns' names.

It never contains actions (the policy would copy them) or quantities that a real robot does not measure, such as poses
of simulated objects. Both can be selected by `--state_keys`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

# Words that contain "action" but do not mean it.
_NO_ACTION = {
    *("interaction", "reaction", "traction", "fraction", "attraction", "contraction", "extraction", "distraction"),
    *("abstraction", "refraction", "transaction", "faction"),
}
_ANSWERS = ("action", "target", "command", "goal", "desired", "setpoint")
_ANSWER_WORDS = {
    *("next", "cmd", "cmds", "act", "acts", "future", "label", "labels", "ref", "reference", "leader", "master", "des"),
    "plus",  # as in joints_t_plus_1
}
_PRIVILEGED = {
    *("object", "objects", "obj", "objs", "cube", "cubes", "block", "blocks", "item", "items", "env", "environment"),
    *("peg", "socket", "drawer", "door", "cup", "world", "scene", "sim", "privileged", "gt", "groundtruth", "physics"),
}
_BOOKKEEPING = {
    *("timestamp", "timestamps", "time", "reward", "rewards", "done", "dones", "terminal", "terminals", "truncated"),
    *("stage", "success", "episode", "frame", "frames", "step", "steps", "index", "idx", "task", "intervention"),
    *("validity", "valid", "return", "returns", "discount", "is", "camera", "cam", "intrinsic", "intrinsics"),
    *("extrinsic", "extrinsics", "depth", "pointcloud", "language", "embedding", "instruction", "seed", "states"),
}
_OF_THE_ROBOT = {
    *("robot", "arm", "arms", "joint", "joints", "jpos", "jvel", "qpos", "qvel", "q", "dq", "eef", "ee", "tcp"),
    *("gripper", "grippers", "hand", "hands", "finger", "fingers", "wrist", "torso", "waist", "base", "head", "neck"),
    *("proprio", "proprioception", "effort", "efforts", "torque", "torques", "force", "forces", "wrench", "tactile"),
    *("left", "right", "agent", "state"),
}

_MEASURED = {  # of columns measured at a robot's joints
    *("pos", "position", "positions", "qpos", "joint", "joints", "jpos", "pose", "poses", "quat", "rot", "eef", "ee"),
    *("tcp", "state", "width", "q", "proprio", "angle", "angles", "xyz"),
}
_FEWEST_ROWS = 16  # equal dimensions required to report two columns as equal
_DISTINCT = 12  # distinct values of a dimension: with fewer, such as a binary gripper, equality may be chance
_MOST_SHIFT = 5  # steps
_SAMPLED_EPISODES = 30


def words_of(name: str) -> list[str]:
    """`observation.leftArm_qpos2` → observation, left, arm, qpos."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[a-z]+", spaced.lower())


def is_action_name(name: str) -> bool:
    """Whether a column's name denotes a command."""
    return any(
        word in _ANSWER_WORDS
        or (word.removesuffix("s") not in _NO_ACTION and any(answer in word for answer in _ANSWERS))
        for word in words_of(name)
    )


def is_privileged(name: str) -> bool:
    """Whether a column's name denotes a quantity that a real robot does not measure."""
    return not _PRIVILEGED.isdisjoint(words_of(name))


def guessed_state(names: Iterable[str]) -> tuple[str, ...]:
    """The columns whose names denote robot measurements, in order; without such names, all that are not excluded."""
    harmless = [
        name
        for name in names
        if not is_action_name(name) and not is_privileged(name) and _BOOKKEEPING.isdisjoint(words_of(name))
    ]
    own = [name for name in harmless if not _OF_THE_ROBOT.isdisjoint(words_of(name))]
    return tuple(own or harmless)


def why_not_in_state(name: str) -> str | None:
    """Why a column is excluded from the default state; None: it is not."""
    if is_action_name(name):
        return "by its name it is an action, which the default state must not contain"
    if is_privileged(name):
        return "by its name a real robot does not measure it"
    return None


# By values -----------------------------------------------------------------------------------------


def action_in_state(
    states: Sequence[np.ndarray],
    actions: Sequence[np.ndarray],
    parts: Sequence[tuple[str, int]],
    action_keys: Sequence[str],
) -> str | None:
    """Find a column of the state that equals the action of the same step or of a nearby step.

    A column is the action if all of its informative dimensions equal dimensions of the action bit for bit, or if it
    contains at least half of the action's. Where actions are states measured some steps later, all columns of the state
    lag the action by the same number of steps; none of them is reported.

    Args:
        states: (T, S) of each episode.
        actions: (T, A) of each episode.
        parts: name and size of the state's columns, in order.
        action_keys: columns of the action, for the sentence.

    Returns:
        a sentence with the column and its offset from the action in steps; None: there is none.
    """
    every = max(1, len(states) // _SAMPLED_EPISODES)
    sampled = zip(states[::every], actions[::every])
    pairs = [(state, action) for state, action in sampled if len(state) == len(action) > _MOST_SHIFT]
    found: dict[str, int] = {}  # column → the smallest shift at which it equals the action
    telling: set[str] = set()
    for shift in sorted(range(-_MOST_SHIFT, _MOST_SHIFT + 1), key=abs) if pairs else ():
        later, earlier = max(0, shift), max(0, -shift)
        state = np.concatenate([values[later : len(values) - earlier] for values, _ in pairs])
        action = np.concatenate([values[earlier : len(values) - later] for _, values in pairs])
        of_state, of_action = _distinct_dims(state), _distinct_dims(action)
        if len(state) < _FEWEST_ROWS or not len(of_action):
            continue
        first = 0
        for name, size in parts:
            dims = of_state[(of_state >= first) & (of_state < first + size)]
            first += size
            same = [dim for dim in dims if any(np.array_equal(state[:, dim], action[:, other]) for other in of_action)]
            if len(dims):
                telling.add(name)
            if same and (len(same) == len(dims) or 2 * len(same) >= len(of_action)):
                found.setdefault(name, shift)
    if not found:
        return None
    name = min(found, key=lambda name: (found[name] > 0, abs(found[name])))
    shift = found[name]
    if shift > 0 and len(set(found.values())) == 1:  # lagging: earlier actions, or actions that are later states
        is_measured = all(not _MEASURED.isdisjoint(words_of(column)) for column in found)
        if telling == found.keys() or is_measured:
            return None
    steps = f"{abs(shift)} step{'s' if abs(shift) > 1 else ''} {'before' if shift > 0 else 'later'}"
    when = "of the same step" if shift == 0 else f"of {steps}"
    return f"the state's column '{name}' is the action ('{', '.join(action_keys)}') {when}, to the last bit"


def _distinct_dims(values: np.ndarray) -> np.ndarray:
    """The dimensions of (N, D) with many distinct values, whose equality is no coincidence."""
    return np.array([dim for dim in range(values.shape[1]) if len(np.unique(values[:, dim])) >= _DISTINCT], dtype=int)
