"""All that a look through a dataset can tell: what it is called, how bad it is, what it does and what to do.

The one list from which the table on the terminal, `--help`'s codes and docs/checking.md are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """How bad a finding is, the worst first."""

    ERROR = "error"  # training refuses the dataset, or fails
    WARNING = "warning"  # training runs, and learns something that was probably not meant
    INFO = "info"  # harmless as a rule, and worth knowing

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


ERROR, WARNING, INFO = Severity


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        code: short words with hyphens.
        severity: the usual one; a check may tell a milder or a graver case.
        finds: what is looked for.
        effect: what it does to training: a sentence.
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
        "Training stops where it meets it.",
        "Copy or record it again, or remove the episode.",
    ),
    Kind(
        "length-mismatch",
        ERROR,
        "files that disagree on how many steps there are",
        "It is unknown which action belongs to which observation.",
        "Write all files from the same recording.",
    ),
    Kind(
        "wrong-format",
        ERROR,
        "fields that are missing, or have another shape or type than they need",
        "Training refuses the dataset.",
        "Save them as the format says.",
    ),
    Kind(
        "missing-episode",
        WARNING,
        "episodes that the dataset lists and that cannot be used",
        "Training goes on without them.",
        "Copy what is missing again.",
    ),
    Kind(
        "unread-image",
        WARNING,
        "arrays that look like images, and are not read (an error if there is no camera without them)",
        "Training goes on without these cameras.",
        "Store them in a form that docs/formats.md names, or record them again.",
    ),
    Kind(
        "left-out",
        INFO,
        "depth images, and columns that are not used for another reason than that others were chosen",
        "Training goes on without them.",
        "See that this was meant; --state_keys and --action_keys choose columns.",
    ),
    Kind(
        "read-otherwise",
        INFO,
        "what was guessed, or read otherwise than the files say",
        "Training takes it as it is told here.",
        "Correct the metadata if it is wrong.",
    ),
    Kind(
        "matched-frames",
        INFO,
        "frames of a video that were matched with steps in their order, since their times disagree",
        "Training takes frame after frame; if the camera dropped some, images are shifted against the actions.",
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
        "states and actions of another type than float32",
        "Training converts them to float32.",
        "Leave it, unless they are raw counts of an encoder instead of measurements.",
    ),
)

_SETTINGS = (
    Kind(
        "config-mismatch",
        ERROR,
        "cameras or sizes that the config asks for and the dataset does not have",
        "Training refuses the dataset.",
        "Change the setting, or choose other columns.",
    ),
    Kind(
        "short-episode",
        INFO,
        "episodes shorter than a chunk",
        "Every chunk of theirs is partly padding, which the loss leaves out.",
        "A smaller chunk_size has less padding.",
    ),
    Kind(
        "action-size",
        INFO,
        "actions of another size than 14 (two arms of six joints and a gripper)",
        "A config for 14 values does not fit.",
        "Set action_dim to the dataset's size or to null.",
    ),
)

_VALUES = (
    Kind(
        "nan",
        ERROR,
        "states or actions that are NaN or infinite",
        "Training refuses them: one such value makes all weights NaN.",
        "Mend or remove the episodes.",
    ),
    Kind(
        "far-value",
        WARNING,
        "values more than 20 standard deviations from the usual ones",
        "They stretch the normalisation: everything else becomes small beside them.",
        "Look for a wrong unit or a bad reading; mend or remove the episodes.",
    ),
    Kind(
        "jump",
        WARNING,
        "a joint that goes a large part of its range within one step, as it does nowhere else",
        "The policy learns to jump, which a robot cannot or should not follow.",
        "Look at these steps with `bimact view`; mend the reading or remove the episode.",
    ),
    Kind(
        "wrapped-angle",
        WARNING,
        "an angle that jumps by a full turn, from π to −π or from 360° to 0°",
        "Two names of one posture: between them the policy answers with the mean, which is far from both.",
        "Unwrap the angle (numpy.unwrap) when recording or converting.",
    ),
    Kind(
        "constant",
        INFO,
        "dimensions that never change",
        "They are learned in a moment and cost nothing.",
        "See that this was meant; --state_dims and --action_dims leave them out.",
    ),
    Kind(
        "frozen-dimension",
        WARNING,
        "an action that never changes though its joint moves, or a joint that never moves though its action does",
        "The policy learns that this joint needs no command, or cannot see where it is.",
        "See that the recorder reads it.",
    ),
    Kind(
        "still-gripper",
        WARNING,
        "a gripper that does not move in some episode, and does in most others",
        "The policy learns from a demonstration in which nothing was grasped.",
        "Look at the episode with `bimact view`; remove it if the task was not done.",
    ),
    Kind(
        "saturated",
        INFO,
        "actions, but of grippers, that often stand at their very limit in the middle of a movement",
        "What the operator wanted beyond the limit is lost.",
        "See whether the teleoperation cuts commands off.",
    ),
    Kind(
        "out-of-reach",
        INFO,
        "actions, but of grippers and hands, that ask for postures which the joint never gets to",
        "The policy learns to ask for them too; a robot's driver may refuse.",
        "See whether the joint is blocked, or has a narrower limit than the command.",
    ),
    Kind(
        "unit-mismatch",
        WARNING,
        "actions in degrees and states in radians, or the reverse",
        "Training normalises both on their own, so it does not mind; but what runs the policy has to know.",
        "Save both in the same unit.",
    ),
)

_MOTION = (
    Kind(
        "copied-state",
        WARNING,
        "a column of the state that is the action, of the same step or a few steps away (an error to the last bit)",
        "The policy learns to copy the action from its input, or to ask for the state that it is in.",
        "Leave the column out by --state_keys; record what was commanded. Naming it by --state_keys says it is meant.",
    ),
    Kind(
        "late-action",
        WARNING,
        "actions that follow the state instead of leading it",
        "The policy learns to repeat what has already happened.",
        "Move the actions earlier by that many steps; look for how the recorder orders its readings.",
    ),
    Kind(
        "long-lag",
        INFO,
        "states that follow their actions by more than half a second",
        "A policy that runs without this delay moves otherwise than the demonstrations.",
        "See whether actions and states have the same clock.",
    ),
    Kind(
        "odd-lag",
        WARNING,
        "an episode in which the delay between action and state is another than usual",
        "Its actions teach other timing than the rest.",
        "Look for steps that one of the two lacks; remove the episode.",
    ),
    Kind(
        "frozen-state",
        WARNING,
        "a state that stands still to the last digit while the actions move on",
        "The policy learns to act blindly.",
        "Look for readings that did not arrive; remove the episode.",
    ),
    Kind(
        "still-episode",
        WARNING,
        "an episode in which the robot hardly moves, though it does in others",
        "The policy learns to stand still.",
        "Remove the episode.",
    ),
    Kind(
        "idle-head",
        INFO,
        "an episode in which nothing moves at first (a warning from half of the episode on)",
        "The policy may learn to wait, and never begin.",
        "Cut the beginning off if it is not part of the task.",
    ),
    Kind(
        "idle-tail",
        INFO,
        "an episode in which nothing moves at the end (a warning from half of the episode on)",
        "Many of its steps teach to stand still.",
        "Cut the end off if it is not part of the task.",
    ),
)

_TIMING = (
    Kind(
        "no-fps",
        INFO,
        "a dataset that does not tell its steps a second",
        "Training counts in steps; but what runs the policy has to know.",
        "Write it into the dataset's own field.",
    ),
    Kind(
        "wrong-fps",
        WARNING,
        "timestamps that tell another number of steps a second than the dataset does",
        "A policy that runs at the number told moves too fast or too slowly.",
        "Correct the number.",
    ),
    Kind(
        "unordered-timestamps",
        WARNING,
        "timestamps that do not rise from step to step",
        "Steps may be in the wrong order, or there twice.",
        "Sort the steps, or remove the episode.",
    ),
    Kind(
        "dropped-steps",
        WARNING,
        "gaps in the timestamps",
        "The robot seems to move faster there than it did.",
        "Record again with a lighter load, or remove the episode.",
    ),
    Kind(
        "irregular-timestamps",
        WARNING,
        "timestamps whose distance varies all along",
        "Speeds are wrong: training takes all steps for equally long.",
        "Resample the episode at equal times.",
    ),
)

_IMAGES = (
    Kind(
        "blank-image",
        WARNING,
        "images that are black or of one colour",
        "The policy learns to act blindly.",
        "See that the camera was on and its lens free; leave it out by --cameras, or remove the episode.",
    ),
    Kind(
        "frozen-camera",
        WARNING,
        "a camera that shows the same image again and again while the robot moves",
        "What the policy sees does not belong to what it does.",
        "See that the camera was running; leave it out by --cameras, or remove the episode.",
    ),
    Kind(
        "slow-camera",
        INFO,
        "a camera that has fewer new images a second than there are steps (a warning from half on)",
        "The policy often sees what was one or more steps ago.",
        "Leave it, or record at the camera's own rate; --fps resamples.",
    ),
    Kind(
        "image-glitch",
        WARNING,
        "a single image that is unlike the one before and the one after",
        "A wrong image for one step; many of them make the policy doubt its eyes.",
        "Look at it with `bimact view`: a damaged file, or another camera's image.",
    ),
    Kind(
        "same-camera",
        WARNING,
        "two cameras that show the same images",
        "The policy lacks a view that it is meant to have, and pays for another one twice.",
        "See which device is plugged in where; leave one out by --cameras.",
    ),
    Kind(
        "swapped-cameras",
        WARNING,
        "two cameras that change places, between episodes or in the middle of one",
        "The policy cannot tell which arm it sees.",
        "Give cameras their names by serial number; exchange them in these episodes.",
    ),
    Kind(
        "changed-image",
        WARNING,
        "an episode whose images are turned, mirrored, or have red and blue exchanged",
        "The policy learns from scenes that it will never see.",
        "Convert these episodes as the others were.",
    ),
    Kind(
        "odd-view",
        INFO,
        "an episode in which a camera's view is far from the other episodes'",
        "More variety, if the scene was meant to differ; a view that never comes again, if the camera was knocked.",
        "Look at the episode with `bimact view`.",
    ),
)

_EPISODES = (
    Kind(
        "duplicate-episode",
        WARNING,
        "episodes that are there twice: the same actions, or the same images",
        "It counts double, and a copy may be held out while its twin is trained on.",
        "Remove one of the two.",
    ),
    Kind(
        "odd-length",
        WARNING,
        "an episode more than three times as long, or as short, as usual",
        "Too short: it was probably broken off. Too long: it counts as much as several others.",
        "Look at the episode with `bimact view`; cut or remove it.",
    ),
    Kind(
        "dominant-episode",
        WARNING,
        "an episode that alone doubles the standard deviation of some dimension",
        "Normalised by it, the movements of all other episodes become small.",
        "Look at the episode with `bimact view`; remove it if it is not what the task is.",
    ),
    Kind(
        "missing-task",
        WARNING,
        "episodes that do not tell their task where others do",
        "ACT takes no language, so it does not mind; but nobody can choose these episodes by their task.",
        "Write the task down.",
    ),
    Kind(
        "no-task",
        INFO,
        "a dataset that does not tell its task in words",
        "ACT takes no language, so it does not mind.",
        "Write the task down for others who use the dataset.",
    ),
    Kind(
        "several-tasks",
        INFO,
        "a dataset of several tasks",
        "ACT takes no language: it can do what the images tell, and mixes tasks up that look alike.",
        "Train one policy for each task if scenes look alike.",
    ),
    Kind(
        "color-order",
        INFO,
        "images of which the format leaves open whether they are RGB or BGR",
        "Training does not mind; but the policy needs the same colours when it runs.",
        "Look at an image with `bimact view`; --color_order exchanges red and blue.",
    ),
)

READING = {kind.code for kind in _FILES}
KINDS = {kind.code: kind for kind in (*_FILES, *_SETTINGS, *_VALUES, *_MOTION, *_TIMING, *_IMAGES, *_EPISODES)}
