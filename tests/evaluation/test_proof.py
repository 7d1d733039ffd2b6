"""The proof of the recipes: which steps are run, what resumes, and what the page says."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import tiny_config

from bimact.config import save_config
from bimact.errors import UserError
from bimact.evaluation import proof
from bimact.evaluation.intervals import wilson_interval
from bimact.evaluation.proof import ProofSettings, page, prove, write_page
from bimact.evaluation.results import add_results
from bimact.files import sha256_of, write_json


class Commands:
    """Stands in for the processes of `bimact record`, `train` and `evaluate`; successes depend on the training seed."""

    def __init__(self) -> None:
        self.log: list[list[str]] = []
        self.fails = ""
        self.scene = 0

    def __call__(self, command: list[str]) -> Any:
        words = command[command.index("bimact") + 1 :]
        self.log.append(words)
        options = {name: value for name, value in pairwise(words) if name.startswith("--")}
        if words[0] == self.fails:
            return SimpleNamespace(returncode=2)
        if words[0] == "record":
            folder = Path(options["--output_dir"])
            folder.mkdir(parents=True, exist_ok=True)
            episodes = [{"seed": self.scene + n} for n in range(int(options["--episodes"]))]
            (folder / "metadata.json").write_text(json.dumps({"episodes": episodes}))
        if words[0] == "train":
            run = Path(options["--output_dir"])
            (run / "checkpoint").mkdir(parents=True, exist_ok=True)
            save_config(tiny_config(cameras=["top"], image_size=[24, 32], execute_steps=3), run / "config.yaml")
            (run / "checkpoint" / "act-train-last.pth").write_text(options["--seed"])
            (run / "metrics.jsonl").write_text(json.dumps({"time_per_epoch": 120.0}) + "\n")
        if words[0] == "evaluate":
            run, total = Path(options["--run"]), int(options["--rollouts"])
            weights = run / "checkpoint" / "act-train-last.pth"
            successes = total - 2 * int(weights.read_text())
            result = {
                "weights_sha256": sha256_of(weights),
                "rollouts": total,
                "successes": successes,
                "success_rate": successes / total,
                "reward_reached": {"1": total, "2": total, "3": successes + 1, "4": successes},
                "settings": {"seed": int(options["--seed"]), "temporal_ensemble": False},
                "execute_steps": 3,
                "steps": 400,
                "each": [{"seed": n, "highest_reward": 4.0 if n < successes else 3.0} for n in range(total)],
            }
            add_results(run, {"rollouts": {options["--task"]: result}})
        return SimpleNamespace(returncode=0)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    stand_in = Commands()
    monkeypatch.setattr(subprocess, "run", stand_in)
    return stand_in


def settings_of(folder: Path, **changes: Any) -> ProofSettings:
    settings = {"tasks": ("insertion",), "seeds": (0, 1, 2), "rollouts": 20, **changes}
    return ProofSettings(folder=folder / "proof", page=folder / "results.md", **settings)


def test_steps_are_run_once_and_resumed(tmp_path: Path, commands: Commands) -> None:
    settings = settings_of(tmp_path)
    commands.fails = "evaluate"
    with pytest.raises(UserError, match=r"the step failed: bimact evaluate .*the same command resumes"):
        prove(settings, lambda _: None)
    commands.fails, commands.log = "", []
    prove(settings, lambda _: None)
    assert [words[0] for words in commands.log] == ["record", *["train", "evaluate"] * 3]
    train = commands.log[1]
    assert train[1:7] == ["--config", "demo", "--batch_size", "32", "--num_steps", "6000"] and train[-2:] == [
        "--resume_from",
        "auto",
    ]
    commands.log = []
    prove(settings, lambda _: None)
    assert [words[0] for words in commands.log] == ["record"]  # which is whole already
    (settings.run("insertion", 1) / "checkpoint" / "act-train-last.pth").write_text("2")  # other weights by now
    commands.log = []
    prove(settings, lambda _: None)
    assert [words[0] for words in commands.log] == ["record", "train", "evaluate"]


def test_the_page_has_each_seed_the_spread_and_no_pooled_figure(tmp_path: Path, commands: Commands) -> None:
    settings = settings_of(tmp_path)
    nothing = page(settings)
    assert nothing.count("not measured yet") == 3 and "Mean over" not in nothing
    write_json(settings.folder / "cost.json", {"machine": "ABC, 2 cores", "insertion": 47.9})
    prove(settings, lambda _: None)
    text = settings.page.read_text()
    for seed, successes in enumerate((20, 18, 16)):
        low, high = wilson_interval(successes, 20)
        rate = f"{successes / 20:.1%}"
        assert f"| {seed} | {successes} of 20 | {rate} | {low:.1%} to {high:.1%} | 2.0 min | ABC, 2 cores |" in text
    assert "Mean over 3 training seeds: **90.0%**, standard deviation 10.0 points, 80.0% to 100.0%." in text
    assert "54 of 60" not in text
    assert "seeds 2000 to 2019" in text and "`last`, fixed before the runs" in text
    assert "| inserted | 20 | 18 | 16 |" in text and "| peg meets socket | 21 | 19 | 17 |" in text
    assert "the first 3 of 5 steps of each chunk" in text and "top, 24 x 32" in text
    assert "CCoL" in text and "| cost of a training | 48 TFLOP of matrix products |" in text
    assert "| recording | `bimact record --task insertion --episodes 50 --output_dir data/insertion` |" in text


def test_machines_share_a_page(tmp_path: Path, commands: Commands) -> None:
    one, other = settings_of(tmp_path / "one", seeds=(0, 2)), settings_of(tmp_path / "other", seeds=(1,))
    prove(one, lambda _: None)
    (other.folder).mkdir(parents=True)
    for end in (".md", ".json"):
        one.page.with_suffix(end).rename(other.page.with_suffix(end))
    prove(other, lambda _: None)
    text = other.page.read_text()
    for seed, successes in enumerate((20, 18, 16)):
        assert f"| {seed} | {successes} of 20 |" in text
    assert "Mean over 3 training seeds" in text
    rows = json.loads(other.page.with_suffix(".json").read_text())["insertion"]
    assert [row["seed"] for row in rows] == [0, 1, 2] and rows[1]["failed_scenes"] == [18, 19]
    # Rows of other scenes or of another recipe are not mixed with these.
    assert page(replace(other, seeds=(0,), first_scene=3000)).count("not measured yet") == 1
    said: list[str] = []
    write_page(replace(one, page=other.page, first_scene=3000), said.append)
    assert (
        len(said) == 1 and "insertion with training seeds 0, 1, 2 are of another recipe or of other scenes" in said[0]
    )
    # What was measured here replaces what was measured elsewhere.
    (other.page.with_suffix(".json")).write_text(json.dumps({"insertion": [{**rows[1], "weights_sha256": "0"}]}))
    write_page(other)
    assert json.loads(other.page.with_suffix(".json").read_text())["insertion"] == [rows[1]]
    other.page.with_suffix(".json").write_text('{"insertion": [{"seed": 1}]}')
    with pytest.raises(UserError, match=r"results\.json is not a file of `bimact proof`.*remove it"):
        page(other)


def test_scenes_of_demonstrations_or_tuning_are_refused(tmp_path: Path, commands: Commands) -> None:
    commands.scene = 1990
    with pytest.raises(UserError, match=r"has demonstrations of the proof's scene 2000: pass another --first_scene"):
        prove(settings_of(tmp_path), lambda _: None)
    with pytest.raises(UserError, match="reach those from 10000 on, which are for tuning"):
        prove(settings_of(tmp_path, first_scene=9990), lambda _: None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tasks": ("juggle",)}, "no recipe for 'juggle'; there are transfer_cube, insertion"),
        ({"seeds": (1, 1)}, "--seeds is 1,1, it has to be different numbers"),
        ({"rollouts": 0}, "--rollouts is 0"),
    ],
)
def test_faulty_settings(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        settings_of(tmp_path, **changes).check()


@pytest.mark.slow
def test_the_cost_comes_from_measured_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bimact.training import estimate

    monkeypatch.setattr(estimate, "_SECONDS", 0.1)
    said: list[str] = []
    settings = settings_of(tmp_path, quick=True)
    table = proof.cost(settings, said.append)
    assert said == ["measuring a few steps of insertion"]
    assert table.row_count == 1 and "In all about" in str(table.caption)
    known = json.loads((settings.folder / "cost.json").read_text())
    assert 0.1 < known["insertion"] < 10 and re.search(r", (1 core|\d+ cores)$", known["machine"])
