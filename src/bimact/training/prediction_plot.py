"""A predicted chunk of actions beside the demonstrated one, joint by joint."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bimact import fonts
from bimact.data.windows import Batch
from bimact.policy.act import ActPolicy

# The colours of the report.
_INK, _GRID, _PREDICTED, _DEMONSTRATED, _PAD = "#23272e", "#dde1e7", "#1d5fc2", "#9aa1ab", "#eaedf2"
_MOST_COLUMNS = 8
_PANEL_WIDTH, _PANEL_HEIGHT = 2.0, 1.85  # inches
_LEAST_WIDTH = 9.0  # inches: title and legend side by side
_LONGEST_NAME = 22  # characters that fit over a panel, beside the unit
_LEAST_RANGE = 0.05  # of a panel, or the noise of a joint at rest would fill it


@torch.no_grad()
def predict(policy: ActPolicy, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arguments of `prediction_figure`, of a batch's first sample; leaves the policy in training mode."""
    obs, actions = batch
    policy.eval()
    predicted, _ = policy(obs)
    policy.train()
    return predicted[0].float().cpu().numpy(), actions[0].cpu().numpy(), obs["action_is_pad"][0].cpu().numpy()


def prediction_figure(
    predicted: np.ndarray,
    demonstrated: np.ndarray,
    is_pad: np.ndarray,
    joint_names: Sequence[str] | None,
    title: str,
) -> Figure:
    """Plot each joint over a chunk in its own panel, the left arm above the right one.

    Args:
        predicted: actions (C, A) in the robot's units.
        demonstrated: actions (C, A) in the robot's units.
        is_pad: (C,) bool: steps beyond the episode's end; they are shaded and nothing is drawn there.
        joint_names: A names, as in `left_wrist_angle`; None if unknown.
        title: of the figure.
    """
    names = list(joint_names or [f"joint {number}" for number in range(predicted.shape[1])])
    rows = math.ceil(len(names) / _MOST_COLUMNS)
    columns = math.ceil(len(names) / rows)
    # A $ in a joint's name is not mathematics.
    with rc_context({"font.family": fonts.families(), "text.parse_math": False}):
        figure = Figure(
            figsize=(max(_LEAST_WIDTH, 0.4 + _PANEL_WIDTH * columns), 0.75 + _PANEL_HEIGHT * rows), layout="constrained"
        )
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for index, axes in enumerate(panels.flat):
            if index < len(names):
                _draw_joint(axes, predicted[:, index], demonstrated[:, index], is_pad)
                text = _panel_title(names[index], index, joint_names is not None)
                axes.set_title(text, fontsize=9, loc="left", color=_INK)
            else:
                axes.set_visible(False)
        figure.suptitle(fonts.drawable(title), x=0.01, ha="left", fontsize=11, color=_INK)
        figure.supxlabel("step of the chunk", fontsize=9, color=_INK)
        if joint_names is None:
            figure.supylabel("robot's units", fontsize=9, color=_INK)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    return figure


def _draw_joint(axes: Axes, predicted: np.ndarray, demonstrated: np.ndarray, is_pad: np.ndarray) -> None:
    """One joint's values (C,) over the steps of the chunk, the first of which is 1."""
    steps = np.arange(1, len(is_pad) + 1)
    axes.plot(steps, np.where(is_pad, np.nan, demonstrated), color=_DEMONSTRATED, lw=2.8, label="demonstrated")
    axes.plot(steps, np.where(is_pad, np.nan, predicted), color=_PREDICTED, lw=1.4, label="predicted")
    if is_pad.any():
        axes.axvspan(steps[is_pad][0] - 0.5, len(is_pad) + 0.5, color=_PAD, label="after the episode's end", zorder=0)
    low, high = axes.get_ylim()
    if high - low < _LEAST_RANGE:
        middle = (low + high) / 2
        axes.set_ylim(middle - _LEAST_RANGE / 2, middle + _LEAST_RANGE / 2)
    axes.set_xlim(0.5, len(is_pad) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.grid(axis="y", color=_GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=_INK, width=0.7)


def _panel_title(name: str, index: int, is_known: bool) -> str:
    """`left_wrist_angle` → left wrist angle, rad. Of a long name its end is shown, where names differ."""
    unit = "" if not is_known else ", opening" if "gripper" in name.lower() else ", rad"
    title = fonts.drawable(fonts.shorten(name.replace("_", " "), head=0, tail=_LONGEST_NAME - 1))
    if title.count(fonts.ABSENT) > name.count(fonts.ABSENT):  # the names may look alike
        title = f"{index}: {title}"
    return title + unit
