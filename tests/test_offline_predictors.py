"""The script that ranks offline metrics by how well they predicted success."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import tiny_config

from bimact.config import save_config
from bimact.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.delitem(sys.modules, "offline_predictors", raising=False)
    import offline_predictors

    return offline_predictors


def write_run(folder: Path, rate: float, mae: float, at_changes: float | None, checkpoint: str = "last") -> Path:
    folder.mkdir()
    save_config(tiny_config(), folder / "config.yaml")
    offline = {"checkpoint": "act-train-last.pth", "mae": mae, "mae_at_gripper_changes": at_changes}
    rollouts = {"insertion": {"checkpoint": f"act-train-{checkpoint}.pth", "success_rate": rate}}
    (folder / "evaluation.json").write_text(json.dumps({"offline": offline, "rollouts": rollouts}))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": n, "val_loss": v}) + "\n" for n, v in [(1, 9), (2, mae)])
    )
    return folder


def test_metrics_are_ranked(tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        write_run(tmp_path / str(n), rate, mae, changes)
        for n, (rate, mae, changes) in enumerate(
            [(0.1, 0.5, 0.9), (0.3, 0.1, 0.7), (0.5, 0.4, 0.5), (0.7, 0.2, 0.4), (0.9, 0.3, 0.1), (1.0, 0.35, 0.05)]
        )
    ]
    script.main([str(run) for run in runs])
    lines = [line for line in capsys.readouterr().out.splitlines() if "insertion" in line]
    assert len(lines) == 3 and "error at gripper changes" in lines[0] and "-1.00" in lines[0]
    assert any("val_loss" in line for line in lines)
    rho, low, high = script.correlation([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 6, 5])
    assert rho == pytest.approx(1 - 6 * 2 / (6 * 35)) and low < rho <= high


def test_what_is_missing_is_told(tmp_path: Path, script: ModuleType) -> None:
    two = [write_run(tmp_path / "a", 0.1, 0.1, None), write_run(tmp_path / "b", 0.2, 0.2, None)]
    with pytest.raises(UserError, match="2 runs of insertion: it takes 5"):
        script.main([str(run) for run in two])
    with pytest.raises(UserError, match="evaluate one checkpoint"):
        script.main([str(write_run(tmp_path / "c", 0.1, 0.1, None, checkpoint="best"))])
    (two[0] / "evaluation.json").unlink()
    with pytest.raises(UserError, match="lacks an evaluation"):
        script.main([str(two[0])])
