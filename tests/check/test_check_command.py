"""`bimact check`: what it prints, its JSON, its exit status."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demonstrations import Demonstrations, clean, save_guide
from pages import ROOT
from rich.console import Console

from bimact.check.dataset import check_dataset
from bimact.check.findings import DatasetReport, Finding
from bimact.check.kinds import ERROR, KINDS, WARNING
from bimact.check.table import print_report
from bimact.cli import main

FACTS = """Total timesteps: 677
Number of episodes: 6
Action shape: (677, 14)
Sum of rollout lengths: 677
✅ Dataset valid!

Format: the guide's observations.npy, actions.npy, rollout_length.npy
Cameras (height x width): front 48x64, wrist 48x64
State size: 14
Episode length: 101 to 125 steps, median 112
Steps a second: 30
Task: stack the cups
Columns: state: state 14; action: action 14
Size on disk: 12.6 MB
"""


def run(*arguments: str | Path) -> tuple[Any, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main(["check", *map(str, arguments)])
    return stop.value.code, out.getvalue(), err.getvalue()


def damaged() -> Demonstrations:
    """A camera that is black in some episodes, a gripper that does not move in one."""
    demos = clean()
    for episode in (1, 3):
        demos.images["front"][episode][:9] = 0
    for part in (demos.state, demos.action):
        part[2][:, 6] = part[2][0, 6]
    return demos


def test_clean_dataset(tmp_path: Path) -> None:
    status, out, err = run(save_guide(clean(), tmp_path))
    assert (status, err) == (0, "")
    assert out.endswith(f"{FACTS}\nNothing was found; {len(KINDS)} kinds of faults were looked for.\n")


def test_findings_are_grouped_with_what_they_do_and_what_to_do(tmp_path: Path) -> None:
    status, out, err = run(save_guide(damaged(), tmp_path))
    assert (status, err) == (1, "")
    gripper, blank = KINDS["still-gripper"], KINDS["blank-image"]
    assert out.endswith(
        f"""
● warning still-gripper  in episode 2
  episode 2: state[6], action[6] (left_gripper) do not move, as they do in most episodes
  {gripper.effect} {gripper.advice}

● warning blank-image  in 2 episodes, first: episode 1, step 0
  episode 1, step 0 (the first of 9): camera 'front' is black
  episode 3, step 0 (the first of 9): camera 'front' is black
  {blank.effect} {blank.advice}

3 warnings; {len(KINDS)} kinds of faults were looked for.

To repair: bimact edit {tmp_path} {tmp_path}_repaired --drop_episodes 1,2,3
It removes 3 of 6 episodes (still-gripper: 2; blank-image: 1, 3). Look at these episodes first with `bimact view`.
"""
    )


@pytest.mark.slow
def test_exit_status(tmp_path: Path) -> None:
    folder = save_guide(damaged(), tmp_path / "warnings")
    assert [run(folder, *options)[0] for options in ((), ("--fail_on", "warning"), ("--fail_on", "error"))] == [1, 1, 0]
    demos = clean()
    demos.action[0][0, 0] = np.nan
    folder = save_guide(demos, tmp_path / "errors")
    status, out, err = run(folder, "--fail_on", "error")
    assert (status, err) == (1, "") and "valid" not in out and "State size: 14" in out
    (folder / "actions.npy").unlink()
    status, out, err = run(folder, "--fail_on", "error")
    assert (status, err) == (2, f"check: {folder} has 1 error: mend what is listed, check again\n")


def test_json_is_alone_on_stdout(tmp_path: Path) -> None:
    folder = save_guide(damaged(), tmp_path)
    status, out, err = run(folder, "--json")
    assert status == 1 and "looking through images" in err
    assert json.loads(out) == json.loads(json.dumps(check_dataset(folder).as_json()))


def test_parts_are_chosen(tmp_path: Path) -> None:
    folder = save_guide(damaged(), tmp_path)
    options = ("--cameras", "wrist", "--max_episodes", "2", "--state_dims", "0:7", "--action_dims", "0:7")
    status, out, _ = run(folder, *options)
    assert status == 0 and "Cameras (height x width): wrist 48x64\nState size: 7\n" in out
    assert run(folder, "--no_images")[1].count("blank-image") == 0
    status, _, err = run(folder, "--cameras", "top")
    assert status == 2 and "has no camera 'top'; it has front, wrist" in err


# On a terminal -------------------------------------------------------------------------------------


def shown(report: DatasetReport, width: int) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, highlight=False, markup=False, color_system=None)
    print_report(report, console, str(report.path))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_are_wrapped_at_the_terminal_and_indented(tmp_path: Path, width: int) -> None:
    report = check_dataset(save_guide(damaged(), tmp_path))
    text = shown(report, width)
    findings = text[text.index("●") : text.index("To repair: ")].splitlines()
    assert max(map(len, findings)) <= width
    assert all(line == "" or line.startswith(("● ", "  ", "3 warnings")) for line in findings)
    joined = " ".join(text.split())
    assert all(finding.sentence in joined for finding in report.findings)


def test_long_groups_are_cut_and_their_episodes_listed(tmp_path: Path) -> None:
    findings = tuple(
        Finding("jump", f"episode {number}: a jump", WARNING, "", number, f"episode {number}")
        for number in (0, 1, 2, 3, 4, 6, 7, 8, 12)
    )
    text = shown(DatasetReport(tmp_path, findings, None, 0, ()), 80)
    assert "● warning jump  in 9 episodes, first: episode 0\n" in text
    assert text.count(": a jump") == 5 and "  … and 4 more: episodes 6–8, 12\n" in text


def test_names_of_strangers_do_not_steer_the_terminal(tmp_path: Path) -> None:
    finding = Finding("nan", "\x1b[2J[bold]x\r", ERROR, "", 0, "\x1b]0;t\x07")
    text = shown(DatasetReport(tmp_path, (finding,), None, 0, ()), 80)
    assert "\x1b" not in text and "\\x1b[2J[bold]x\\r" in text and "\\x1b]0;t\\x07" in text


# The page ------------------------------------------------------------------------------------------


def test_page_lists_all_codes() -> None:
    page = (ROOT / "docs" / "checking.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| (.*) \|$", page, re.MULTILINE)
    assert rows == [(kind.code, kind.severity.value, kind.finds) for kind in KINDS.values()]


def test_page_shows_what_is_printed() -> None:
    """Codes and words of the page's example are those of the program."""
    page = (ROOT / "docs" / "checking.md").read_text()
    shown_codes = re.findall(r"^● (\w+) ([a-z-]+)  in ", page, re.MULTILINE)
    assert shown_codes
    for severity, code in shown_codes:
        assert KINDS[code].severity.value == severity
        assert f"  {KINDS[code].effect} {KINDS[code].advice}\n" in page
