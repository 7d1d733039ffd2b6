"""The pictures of a report: plots as inline SVG that follow the page's colours, frames as JPEG data URIs."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

from bimact.data.episodes import Episodes
from bimact.evaluation.page import COLORS, plain, plain_numbers, shorten, svg_plot

Record = Mapping[str, Any]

BASELINE_STYLES = (("hold", (0, (5, 2))), ("mean", (0, (1, 1.5))))

_MAX_POINTS = 600


def learning_curves(records: Sequence[Record]) -> dict[str, Markup]:
    """Loss, learning rate, speed and share of waiting for data over the optimizer steps."""
    steps = [record for record in records if "action_loss" in record]
    plots = {"loss": _loss_plot(steps, [record for record in records if "val_loss" in record])}
    rollouts = [record for record in records if "success_rate" in record]
    if rollouts:
        plots["success"] = _success_plot(rollouts)
    for name, title, scale in (
        ("lr", "learning rate", 1.0),
        ("steps_per_second", "optimizer steps per second", 1.0),
        ("data_wait_share", "time spent waiting for data, %", 100.0),
    ):
        x, y = _series(steps, name)
        if np.isfinite(y).any():
            plots[name] = _small_curve(name, title, x, scale * y)
    return plots


def _loss_plot(steps: Sequence[Record], validations: Sequence[Record]) -> Markup:
    x, action = _series(steps, "action_loss")
    kl = _series(steps, "kl_loss")[1]

    def draw(axes: Axes) -> None:
        if kl.any():
            axes.plot(*_series(steps, "total_loss"), color=COLORS["mean"], lw=1.2, label="training: total")
            axes.plot(x, np.where(kl > 0, kl, np.nan), color=COLORS["kl"], lw=1.2, label="training: weighted KL")
        name = "action" if kl.any() else "action (= total: no CVAE, no KL)"
        axes.plot(x, action, color=COLORS["policy"], label=f"training: {name}")
        markers: dict[str, Any] = {"color": COLORS["val"], "marker": "o", "ms": 4, "lw": 0.9}
        if validations:
            markers["markevery"] = max(1, min(len(validations), _MAX_POINTS) // 40)
            axes.plot(*_series(validations, "val_loss"), label="validation: action, after an epoch", **markers)
        is_logarithmic = any((np.asarray(line.get_ydata()) > 0).any() for line in axes.lines)
        if is_logarithmic:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 500 * low else (1.0,)))
            axes.yaxis.set_minor_locator(NullLocator())
        plain_numbers(axes)
        scale = ", logarithmic scale" if is_logarithmic else ""
        axes.set(title=f"loss of normalised actions{scale}", xlabel="optimizer step")
        axes.legend(loc="best")

    label = "Learning curves"
    if len(action):
        first, last = (f"{action[index]:.3g} at step {x[index]:.0f}" for index in (0, -1))
        label = f"Training action loss from {first} to {last}"
    if validations:
        label += f"; the last validation loss is {validations[-1]['val_loss']:.3g}"
    return svg_plot("loss", label, 3.9, draw)


def _success_plot(rollouts: Sequence[Record]) -> Markup:
    """Success rate in training, with Wilson's 95% interval, over the steps whose weights were rolled out."""
    x, rate = (np.array([record[name] for record in rollouts]) for name in ("eval_step", "success_rate"))
    low, high = (np.array([record[name] for record in rollouts]) for name in ("success_low", "success_high"))

    def draw(axes: Axes) -> None:
        axes.fill_between(x, 100 * low, 100 * high, color=COLORS["val"], alpha=0.18, lw=0)
        axes.plot(x, 100 * rate, color=COLORS["val"], marker="o", ms=3.5)
        axes.set_ylim(0, 100)
        axes.set_xlim(left=0)  # as the curves beside it
        axes.yaxis.set_major_locator(MaxNLocator(4))
        plain_numbers(axes)
        axes.set_title("success rate of rollouts in training, 95% interval, %")

    label = f"Success rate in training: {rate[-1]:.0%} at step {x[-1]:.0f}, at most {rate.max():.0%}"
    return svg_plot("success", label, 1.6, draw, left=0.6)


def _small_curve(name: str, title: str, x: np.ndarray, y: np.ndarray) -> Markup:
    def draw(axes: Axes) -> None:
        axes.plot(x, y, color=COLORS["policy"])
        axes.set_ylim(0, max(1e-12, 1.15 * float(np.nanmax(y))))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        plain_numbers(axes)
        axes.set_title(title)

    return svg_plot(name, f"{title}: last value {y[-1]:.3g}", 1.3, draw, left=0.6)


def robustness_plots(curves: Mapping[str, Sequence[tuple[float | str, float, float, float]]]) -> dict[str, Markup]:
    """A panel for each perturbation: success rate over its magnitude, with Wilson's 95% intervals.

    Args:
        curves: perturbation → (magnitude, rate, low, high), as `bimact.evaluation.robustness.curves` returns it.
    """

    def panel(name: str, points: Sequence[tuple[float | str, float, float, float]]) -> Markup:
        magnitudes, rates = [point[0] for point in points], np.array([point[1:] for point in points])
        named = any(isinstance(value, str) for value in magnitudes)

        def draw(axes: Axes) -> None:
            x = np.arange(len(points)) if named else np.array(magnitudes, dtype=float)
            rate, low, high = 100 * rates.T
            axes.errorbar(
                x, rate, (rate - low, high - rate), color=COLORS["val"], marker="o", ms=4, lw=0 if named else 1.2,
                elinewidth=1.0, capsize=2,
            )  # fmt: skip
            axes.set_ylim(-3, 103)
            axes.margins(x=0.08)
            axes.set_yticks([0, 50, 100])
            if named:
                axes.set_xticks(x, [shorten(str(value)) for value in magnitudes])
                axes.set_xlim(-0.5, len(points) - 0.5)
            else:
                axes.set_xticks(x, [plain(value) for value in x])
            axes.set_title(name.replace("_", " "))

        values = ", ".join(f"{rate:.0%} at {value}" for value, rate in zip(magnitudes, rates[:, 0]))
        return svg_plot(f"robustness-{name}", f"Success rate under {name}: {values}", 1.45, draw, width=3.05, left=0.48)

    return {name: panel(name, points) for name, points in curves.items()}


def error_plots(offline: Record) -> dict[str, Any]:
    """What evaluation on demonstrations has found.

    Returns:
        `by_joint`: a plot for joints and one for grippers, since their units differ; `horizon`: one by the
        chunk's step; `arms`: arm → a plot of each joint's trajectory.
    """
    names: list[str] = offline["joint_names"]
    every = {"policy": offline, **offline["baselines"]}
    unnamed = all(re.fullmatch(r"joint \d+", name) for name in names)
    grippers = [index for index, name in enumerate(names) if "gripper" in name.lower()]
    angles = [index for index in range(len(names)) if index not in grippers]
    by_joint = []
    for title, unit, chosen in (
        ("by joint", "robot's units" if unnamed else "rad", angles),
        ("grippers", "opening from 0 to 1", grippers),
    ):
        errors = {name: [of["mae_by_joint"][index] for index in chosen] for name, of in every.items()}
        if chosen:
            by_joint.append(_joint_errors(title, unit, [names[index] for index in chosen], errors))
    arms: dict[str, list[Markup]] = {}
    for index, name in enumerate(names):
        arm, joint = _arm_and_joint(name)
        unit = "" if unnamed else ", opening" if index in grippers else ", rad"
        arms.setdefault(arm, []).append(_trajectory(index, joint + unit, offline["trajectory"], offline["fps"]))
    horizon = _horizon_errors({name: of["mae_by_horizon_step"] for name, of in every.items()})
    return {"by_joint": by_joint, "horizon": horizon, "arms": arms}


def _arm_and_joint(name: str) -> tuple[str, str]:
    """`left_wrist_angle` → Left arm, wrist angle."""
    match = re.fullmatch(r"(left|right)[\W_]+(.+)", name, flags=re.IGNORECASE)
    return (f"{match[1].capitalize()} arm", match[2].replace("_", " ")) if match else ("All joints", name)


def _joint_errors(title: str, unit: str, names: Sequence[str], errors: Mapping[str, Sequence[float]]) -> Markup:
    """Horizontal bars of the mean absolute error of each joint: the policy's, then those of the baselines.

    Args:
        title: which joints.
        unit: of their errors.
        names: of the joints.
        errors: of the policy and of each baseline, one number per joint.
    """
    styles = [("policy", 0.4, 1.0), ("hold", 0.2, 0.75), ("mean", 0.2, 0.75)]

    def draw(axes: Axes) -> None:
        top = np.arange(len(names)) - 0.4
        for (color, height, alpha), values in zip(styles, errors.values()):
            axes.barh(top + height / 2, _finite(values), height, color=COLORS[color], alpha=alpha, lw=0)
            top = top + height
        for row, value in enumerate(errors["policy"]):
            axes.annotate(f"{value:.3g}", (value, row - 0.2), (3, 0), textcoords="offset points", va="center", size=7.8)
        axes.set_yticks(range(len(names)), [shorten(name) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(plain)
        axes.set(title=title, xlabel=f"mean absolute error, {unit}")

    values = ", ".join(f"{name} {value:.3g}" for name, value in zip(names, errors["policy"]))
    return svg_plot(
        f"errors-{'joints' if title == 'by joint' else title}",
        f"Policy's error by joint in {unit}: {values}",
        0.75 + 0.3 * len(names),
        draw,
    )


def _horizon_errors(errors: Mapping[str, Sequence[float]]) -> Markup:
    """Mean absolute error over the steps of the chunk: the policy's and those of the baselines."""
    policy, *baselines = errors.values()

    def draw(axes: Axes) -> None:
        for (color, dashes), values in zip(BASELINE_STYLES, baselines):
            axes.plot(*_thin(np.arange(1, len(values) + 1), values), color=COLORS[color], ls=dashes)
        axes.plot(*_thin(np.arange(1, len(policy) + 1), policy), color=COLORS["policy"], lw=1.8)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        plain_numbers(axes)
        axes.set(
            title="by step of the chunk, all joints together",
            xlabel="steps ahead",
            ylabel="mean absolute error",
        )

    label = f"Policy's error by step of the chunk: {policy[0]:.3g} at the first, {policy[-1]:.3g} at the last"
    return svg_plot("errors-horizon", label, 2.55, draw)


def _trajectory(index: int, title: str, trajectory: Record, fps: float | None) -> Markup:
    """One joint over an episode, demonstrated and predicted, with a mark where a chunk begins."""
    demonstrated, predicted = (_finite(trajectory[name])[:, index] for name in ("demonstrated", "predicted"))
    times, chunk_size = np.arange(len(demonstrated)) / (fps or 1.0), trajectory["chunk_size"]

    def draw(axes: Axes) -> None:
        for border in times[chunk_size::chunk_size]:
            axes.axvline(border, color=COLORS["mean"], lw=0.6, ls=(0, (2, 2)))
        axes.plot(*_thin(times, demonstrated), color=COLORS["demo"], lw=2.6)
        axes.plot(*_thin(times, predicted), color=COLORS["policy"], lw=1.2)
        low, high = axes.get_ylim()
        if high - low < 0.05:  # or the noise of a joint at rest would fill the panel
            axes.set_ylim((low + high) / 2 - 0.05, (low + high) / 2 + 0.05)
        axes.grid(False, axis="x")
        axes.margins(x=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        plain_numbers(axes)
        axes.set_title(shorten(title))

    error = float(np.mean(np.abs(predicted - demonstrated)))
    label = f"{title}: predicted against demonstrated, mean difference {error:.3g}"
    return svg_plot(f"trajectory-{index}", label, 1.45, draw, width=3.05, left=0.48)


def _series(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one figure, where it was recorded."""
    pairs = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    steps, values = np.array(pairs, dtype=float).reshape(-1, 2).T
    return _thin(steps, values)


def _thin(x: np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """No more points than can be told apart: means of neighbouring ones; a gap where one is not finite."""
    x, y = np.asarray(x, dtype=float), _finite(y)
    if len(x) <= _MAX_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _MAX_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Values (N,), with NaN in place of Inf, which no axis can show."""
    values = np.asarray(values, dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


# Frames --------------------------------------------------------------------------------------------


def embedded_video(path: Path, frames: int) -> dict[str, Any]:
    """A video as data URIs: itself, some frames with their times in seconds, the last of them as its poster.

    A file that cannot be decoded has no frames, and None as its poster.
    """
    decoded = _decode(path, frames)
    stills = [(time, _jpeg_uri(frame)) for time, frame in decoded]
    return {
        "name": path.name,
        "source": _data_uri("video/mp4", path.read_bytes()),
        "frames": stills,
        "poster": stills[-1][1] if stills else None,
        "shape": decoded[-1][1].shape[:2] if decoded else None,
    }


def demonstration_frames(episodes: Episodes, camera: str, frames: int) -> list[tuple[float, str]]:
    """Frames of the first demonstration, evenly from its first step to its last.

    Returns:
        step, or time in seconds where the frame rate is known; and the image's data URI.
    """
    rows = np.linspace(0, int(episodes.lengths[0]) - 1, frames).round().astype(int)
    images = np.asarray(episodes.images[camera][rows])
    return [(float(row / (episodes.fps or 1)), _jpeg_uri(image)) for row, image in zip(rows, images)]


def _decode(path: Path, count: int) -> list[tuple[float, np.ndarray]]:
    frames = []
    try:
        with av.open(str(path)) as container:
            total = container.streams.video[0].frames
            wanted = set(np.linspace(0, total - 1, count).round().astype(int)) if total else set()
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    frames.append((float(frame.time or 0), frame.to_ndarray(format="rgb24")))
    except (av.error.FFmpegError, IndexError):  # damaged, or no video in it
        return []
    return frames


def _jpeg_uri(image: np.ndarray) -> str:
    """An image (H, W, 3) uint8 RGB."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return _data_uri("image/jpeg", file.getvalue())


def embedded_png(path: Path) -> str:
    """A picture's data URI."""
    return _data_uri("image/png", path.read_bytes())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
