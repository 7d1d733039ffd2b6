"""All kinds of findings: code, severity, what is found, its effect on training, and advice.

The one list behind the report on the terminal, the JSON and docs/checking.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """Severity of a finding, the worst first."""

    ERROR = "error"  # training refuses the dataset, or fails
    WARNING = "warning"  # training runs, but probably learns something unintended
    INFO = "info"  # usually harmless, but worth knowing

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


ERROR, WARNING, INFO = Severity


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        code: short words with hyphens.
        severity: the default; a check may report a lower or a higher one.
        finds: what is found.
        effect: on training: a sentence.
        advice: what to do: a sentence.
    """

    code: str
    severity: Severity
    finds: str
    effect: str
    advice: str


_FILES = (
    Kind(
        "unreadable",
        ERROR,
        "a file, an episode or a camera's images that cannot be read",
        "Training stops there.",
        "Copy or record it again, or remove the episode.",
    ),
    Kind(
        "length-mismatch",
        ERROR,
        "files that disagree on the number of steps",
        "It is unknown which action belongs to which observation.",
        "Write all files from the same recording.",
    ),
    Kind(
        "wrong-format",
        ERROR,
        "fields that are missing, or have a wrong shape or dtype",
        "Training refuses the dataset.",
        "Save them as the format says.",
    ),
    Kind(
        "missing-episode",
        WARNING,
        "episodes that the dataset lists but that cannot be used",
        "Training leaves them out.",
        "Copy the missing files again.",
    ),
    Kind(
        "unread-image",
        WARNING,
        "arrays that look like images but are not read (an error if there is no other camera)",
        "Training leaves these cameras out.",
        "Store them in a form listed in docs/formats.md, or record them again.",
    ),
    Kind(
        "left-out",
        INFO,
        "depth images, and columns that cannot be used",
        "Training leaves them out.",
        "Check that this is intended; --state_keys and --action_keys select columns.",
    ),
    Kind(
        "read-otherwise",
        INFO,
        "metadata that were guessed, or that contradict the files",
        "Training uses what this finding says.",
        "Correct the metadata if it is wrong.",
    ),
    Kind(
        "matched-frames",
        INFO,
        "video frames that were matched with steps by their order, since their timestamps disagree",
        "If the camera dropped frames, images are shifted against the actions.",
        "Look at the episode with `bimact view`: does the camera show what the joints do?",
    ),
    Kind(
        "ignored-field",
        WARNING,
        "fields that only some steps have",
        "Training ignores them.",
        "Save the same fields at each step.",
    ),
    Kind(
        "dtype",
        INFO,
        "states and actions of another dtype than float32",
        "Training converts them to float32.",
        "Nothing to do, unless they are raw encoder counts instead of measurements.",
    ),
)

_SETTINGS = (
    Kind(
        "config-mismatch",
        ERROR,
        "cameras or sizes of the config that the dataset does not have",
        "Training refuses the dataset.",
        "Change the setting, or select other columns.",
    ),
    Kind(
        "short-episode",
        INFO,
        "episodes shorter than a chunk",
        "All of their chunks contain padding, which the loss ignores.",
        "A smaller chunk_size has less padding.",
    ),
    Kind(
        "action-size",
        INFO,
        "actions of another size than 14 (two arms of six joints and a gripper)",
        "A config for 14 dimensions does not fit.",
        "Set action_dim to the dataset's size or to null.",
    ),
)

_VALUES = (
    Kind(
        "nan",
        ERROR,
        "states or actions with NaN or Inf",
        "Training refuses them: a single one makes all weights NaN.",
        "Fix or remove the episodes.",
    ),
    Kind(
        "far-value",
        WARNING,
        "values more than 20 standard deviations from the median",
        "They dominate the normalisation statistics: all other values become small.",
        "Look for a wrong unit or a sensor fault; fix or remove the episodes.",
    ),
    Kind(
        "jump",
        WARNING,
        "a joint that moves by a large part of its range within one step, as it does nowhere else",
        "The policy learns jumps, which a robot cannot or should not follow.",
        "Look at these steps with `bimact view`; fix the values or remove the episode.",
    ),
    Kind(
        "wrapped-angle",
        WARNING,
        "an angle that jumps by a full turn, from π to −π or from 360° to 0°",
        "Angle wrap-around: the policy predicts the mean of two equivalent angles, which is far from both.",
        "Unwrap the angle (numpy.unwrap) when recording or converting.",
    ),
    Kind(
        "constant",
        INFO,
        "dimensions that never change",
        "No effect: they are trivial to predict.",
        "Check that this is intended; --state_dims and --action_dims select dimensions.",
    ),
    Kind(
        "frozen-dimension",
        WARNING,
        "an action that never changes though its joint moves, or a joint that never moves though its action does",
        "The policy learns that this joint needs no command, or cannot see where it is.",
        "Check that the recorder reads it.",
    ),
    Kind(
        "still-gripper",
        WARNING,
        "a gripper that does not move in an episode, but does in most others",
        "The policy learns from a demonstration without a grasp.",
        "Look at the episode with `bimact view`; remove it if the task failed.",
    ),
    Kind(
        "saturated",
        INFO,
        "actions (except of grippers) that are often saturated at their limit during a movement",
        "Commands beyond the limit are lost.",
        "Check whether the teleoperation clips commands.",
    ),
    Kind(
        "out-of-reach",
        INFO,
        "actions (except of grippers and hands) far beyond the range that the joint reaches",
        "The policy learns to command them too; a robot's driver may refuse.",
        "Check whether the joint is blocked, or has a narrower limit than the command.",
    ),
    Kind(
        "unit-mismatch",
        WARNING,
        "actions in degrees and states in radians, or the reverse",
        "No effect on training, which normalises both separately; the robot's controller must know the units.",
        "Save both in the same unit.",
    ),
)

_MOTION = (
    Kind(
        "copied-state",
        WARNING,
        "a column of the state that equals the action of the same or a nearby step (an error if bit-identical)",
        "The policy learns to copy the action from its input, or to command its current state.",
        "Exclude the column by --state_keys, or record the commands. If it is intended, include it by --state_keys.",
    ),
    Kind(
        "late-action",
        WARNING,
        "actions that lag behind the state instead of leading it",
        "The policy learns to repeat past motion.",
        "Shift the actions earlier by that many steps; check the order in which the recorder reads them.",
    ),
    Kind(
        "long-lag",
        INFO,
        "states that lag behind their actions by more than half a second",
        "Without this delay, the policy moves differently from the demonstrations.",
        "Check whether actions and states have the same clock.",
    ),
    Kind(
        "odd-lag",
        WARNING,
        "an episode with an unusual delay between action and state",
        "Its timing contradicts the other episodes.",
        "Look for missing steps in either; remove the episode.",
    ),
    Kind(
        "frozen-state",
        WARNING,
        "a state that is frozen, bit by bit, while the actions change",
        "The policy learns to act without its sensors.",
        "Look for lost sensor messages; remove the episode.",
    ),
    Kind(
        "still-episode",
        WARNING,
        "an episode in which the robot hardly moves, though it does in others",
        "The policy learns not to move.",
        "Remove the episode.",
    ),
    Kind(
        "idle-head",
        INFO,
        "an episode that begins without motion (a warning from half of the episode on)",
        "The policy may learn to wait forever.",
        "Trim the beginning if it is not part of the task.",
    ),
    Kind(
        "idle-tail",
        INFO,
        "an episode that ends without motion (a warning from half of the episode on)",
        "Many of its steps teach not to move.",
        "Trim the end if it is not part of the task.",
    ),
)

_TIMING = (
    Kind(
        "no-fps",
        INFO,
        "a dataset without fps",
        "No effect on training; the robot's controller must know the control frequency.",
        "Add it to the dataset's metadata.",
    ),
    Kind(
        "wrong-fps",
        WARNING,
        "timestamps that contradict the dataset's fps",
        "A policy that runs at the wrong frequency moves too fast or too slowly.",
        "Correct the fps.",
    ),
    Kind(
        "unordered-timestamps",
        WARNING,
        "timestamps that do not increase",
        "Steps may be out of order or duplicated.",
        "Sort the steps, or remove the episode.",
    ),
    Kind(
        "dropped-steps",
        WARNING,
        "gaps in the timestamps",
        "The recorded motion is too fast there.",
        "Record again with less load on the computer, or remove the episode.",
    ),
    Kind(
        "irregular-timestamps",
        WARNING,
        "timestamps with irregular intervals",
        "Velocities are wrong: training assumes equal intervals.",
        "Resample the episode at equal intervals.",
    ),
)

_IMAGES = (
    Kind(
        "blank-image",
        WARNING,
        "images that are black or of one colour",
        "The policy learns to act without its sensors.",
        "Check that the camera was on and its lens free; exclude it by --cameras, or remove the episode.",
    ),
    Kind(
        "frozen-camera",
        WARNING,
        "a camera with frozen frames while the robot moves",
        "Images and actions do not match.",
        "Check that the camera was running; exclude it by --cameras, or remove the episode.",
    ),
    Kind(
        "slow-camera",
        INFO,
        "a camera with a lower frame rate than the dataset (a warning if half of its frames repeat)",
        "The policy often sees images that are one or more steps old.",
        "Nothing to do, or record at the camera's frame rate; --fps resamples.",
    ),
    Kind(
        "image-glitch",
        WARNING,
        "a single image that is unlike the one before and the one after",
        "A wrong image for one step; many of them degrade visual features.",
        "Look at it with `bimact view`: a damaged file, or another camera's image.",
    ),
    Kind(
        "depth-holes",
        WARNING,
        "depth images with far more pixels without a measurement than usual, or with hardly any measurement",
        "The policy does not see how far things are.",
        "Look for reflections, an object too near to the camera, or a covered lens; exclude it by --cameras.",
    ),
    Kind(
        "depth-saturated",
        WARNING,
        "depth images with many pixels at the largest distance that the camera gives",
        "Distances beyond the range look like a wall; a wrong unit looks the same.",
        "Check the unit (millimetres as integers, metres as floats), and write 0 where nothing is measured.",
    ),
    Kind(
        "same-camera",
        WARNING,
        "two cameras that show the same images",
        "The policy lacks one view and encodes the other one twice.",
        "Check which device is connected where; exclude one by --cameras.",
    ),
    Kind(
        "swapped-cameras",
        WARNING,
        "two cameras that are swapped, between episodes or within one",
        "The policy cannot tell which arm it sees.",
        "Identify cameras by serial number; swap them back in these episodes.",
    ),
    Kind(
        "changed-image",
        WARNING,
        "an episode whose images are rotated, mirrored, or have red and blue swapped",
        "The policy learns from images that it will never see.",
        "Convert these episodes in the same way as the others.",
    ),
    Kind(
        "odd-view",
        INFO,
        "an episode in which a camera's view differs strongly from the other episodes'",
        "More variety, if the scene is different by design; a misleading view, if the camera was moved.",
        "Look at the episode with `bimact view`.",
    ),
)

_EPISODES = (
    Kind(
        "duplicate-episode",
        WARNING,
        "duplicated episodes: the same actions, or the same images",
        "It counts twice, and may be in both the training and the validation set.",
        "Remove one of the two.",
    ),
    Kind(
        "odd-length",
        WARNING,
        "an episode more than three times longer or shorter than the median",
        "Too short: it was probably aborted. Too long: it counts as much as several others.",
        "Look at the episode with `bimact view`; trim or remove it.",
    ),
    Kind(
        "dominant-episode",
        WARNING,
        "an episode that alone doubles the standard deviation of a dimension",
        "After normalisation, the movements of all other episodes are small.",
        "Look at the episode with `bimact view`; remove it if it does not show the task.",
    ),
    Kind(
        "missing-task",
        WARNING,
        "episodes without a task description where others have one",
        "No effect, since ACT takes no language; but these episodes cannot be selected by task.",
        "Add a task description.",
    ),
    Kind(
        "no-task",
        INFO,
        "a dataset without a task description",
        "No effect, since ACT takes no language.",
        "Add one for others who use the dataset.",
    ),
    Kind(
        "several-tasks",
        INFO,
        "a dataset of several tasks",
        "ACT takes no language: it cannot distinguish tasks whose images look alike.",
        "Train one policy per task if their scenes look alike.",
    ),
    Kind(
        "color-order",
        INFO,
        "images whose format does not specify RGB or BGR",
        "No effect on training; the policy needs the same colour order on the robot.",
        "Look at an image with `bimact view`; --color_order swaps red and blue.",
    ),
)

READING = {kind.code for kind in _FILES}
KINDS = {kind.code: kind for kind in (*_FILES, *_SETTINGS, *_VALUES, *_MOTION, *_TIMING, *_IMAGES, *_EPISODES)}
