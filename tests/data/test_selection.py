"""The part of a dataset that is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import synthetic_source

from bimact.config import load_config
from bimact.data.selection import Selection, parse_dims
from bimact.errors import UserError


@pytest.mark.parametrize(
    "text, dims",
    [
        ("0:3", (0, 1, 2)),
        ("5", (5,)),
        ("0:2,4,6:8", (0, 1, 4, 6, 7)),
        ("7:9, 0:2", (7, 8, 0, 1)),
        ("[1:3]", (1, 2)),
    ],
)
def test_dimensions_as_text(text: str, dims: tuple[int, ...]) -> None:
    assert parse_dims("state_dims", text, 9) == dims


@pytest.mark.parametrize("text", ["", "0:10", "3:3", "4:2", "-1", "a", "1:2:3", "9", "0:9999999999"])
def test_dimensions_that_there_are_not(text: str) -> None:
    with pytest.raises(UserError, match="state_dims is"):
        parse_dims("state_dims", text, 9)


@pytest.mark.parametrize(
    "selection, words",
    [
        (Selection(cameras=("tob",)), "no camera 'tob'; it has top, wrist; did you mean 'top'"),
        (Selection(state_keys=("qposs",)), "no column 'qposs'; it has qpos, qvel, tau, action; did you mean 'qpos'"),
        (Selection(action_keys=("x",)), "no column 'x'"),
        (Selection(state_keys=("qpos", "qvel"), state_dims="0:9"), "not within the 8 dimensions"),
        (Selection(filter_key="train"), "has no filter keys"),
    ],
)
def test_what_the_dataset_does_not_have_is_refused(tmp_path: Path, selection: Selection, words: str) -> None:
    with pytest.raises(UserError, match=words):
        selection.applied_to(synthetic_source(tmp_path))


def test_a_dataset_that_does_not_tell_its_actions_asks_for_them(tmp_path: Path) -> None:
    source = synthetic_source(tmp_path, action_keys=())
    with pytest.raises(UserError, match="choose by --action_keys A,B among qpos \\(4\\), qvel \\(4\\)"):
        Selection().applied_to(source)
    assert Selection(action_keys=("tau",)).applied_to(source).columns["action"].size == 1


def test_columns_are_joined_and_cut_with_their_names(tmp_path: Path) -> None:
    source = synthetic_source(tmp_path)
    part = Selection(state_keys=("qpos", "action"), state_dims="1,4:6").applied_to(source)
    assert part.columns["state"].names == ("b", "a", "b")
    columns = source.read_columns(0, ["qpos", "action"])
    expected = np.concatenate([columns["qpos"][:, 1:2], columns["action"][:, :2]], axis=1)
    assert np.array_equal(part.read_columns(0, ["state"])["state"], expected)
    mixed = Selection(state_keys=("qpos", "tau")).applied_to(source).columns["state"]
    assert (mixed.names, mixed.size, mixed.dtype) == (None, 5, "float64")


@given(
    recorded=st.sampled_from([10.0, 15.0, 30.0, 50.0, 60.0, 29.97]),
    wanted=st.sampled_from([5.0, 7.0, 10.0, 12.5, 25.0, 30.0, 100.0]),
    length=st.integers(1, 400),
)
def test_each_resampled_step_is_the_last_one_recorded_by_then(
    tmp_path_factory: pytest.TempPathFactory, recorded: float, wanted: float, length: int
) -> None:
    source = synthetic_source(tmp_path_factory.getbasetemp() / "resampled", [length], fps=recorded)
    part = Selection(fps=wanted).applied_to(source)
    count = part.episodes[0].length
    steps = part._steps(0)
    times = np.arange(count) / wanted
    assert part.fps == wanted
    assert steps[0] == 0 and steps[-1] <= length - 1
    assert times[-1] < length / recorded + 1e-6 and count / wanted >= length / recorded - 1e-3 / recorded
    # Slow reference: walk through the recording.
    for step, time in zip(steps, times):
        last = max(number for number in range(length) if number / recorded <= time + 1e-3 / recorded)
        assert step == last
    if wanted == recorded:
        assert part.read_timestamps(0) is not None
    else:
        assert part.read_timestamps(0) is None


def test_fps_of_a_dataset_that_tells_none_is_declared(tmp_path: Path) -> None:
    part = Selection(fps=30).applied_to(synthetic_source(tmp_path, [7], fps=None))
    assert (part.fps, part.lengths.tolist()) == (30, [7])


def test_settings_of_a_training() -> None:
    config = load_config(None, ["cameras=a,b", "state_dims=7:14", "state_keys=qpos,qvel", "fps=25", "max_episodes=3"])
    assert Selection.of(config) == Selection(
        cameras=("a", "b"), state_keys=("qpos", "qvel"), state_dims="7:14", max_episodes=3, fps=25.0
    )


@pytest.mark.parametrize("written", ["7:14", "'7:14'"])
def test_a_range_is_no_number_to_the_base_60(written: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"state_dims: {written}\n")
    assert load_config(tmp_path / "config.yaml").state_dims == "7:14"


def test_columns_of_another_length_than_the_episode_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Selection(state_keys=("qpos",)).applied_to(synthetic_source(tmp_path))
    read = type(source.whole).read_columns

    def read_one_row_less(self: object, episode: int, keys: list[str]) -> dict[str, np.ndarray]:
        return {key: values[:-1] for key, values in read(self, episode, keys).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(type(source.whole), "read_columns", read_one_row_less)
    with pytest.raises(UserError, match="episode 1: 'qpos' has 7 rows, the episode 8 steps"):
        source.read_columns(1, ["state"])
