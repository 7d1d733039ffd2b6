"""Training with `compile: true`: the same losses, one compilation, exact resuming."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config
from processes import in_own_process

from bimact.config import Config
from bimact.errors import UserError
from bimact.run_directory import read_metrics
from bimact.training.act_trainer import train_run
from bimact.training.compiled import CompiledPolicy
from bimact.training.prepare import prepare_run

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def config_of(dataset: Path, run: Path, **changes: Any) -> Config:
    settings = {"compile": True, "mixed_precision": "no", "batch_size": 7, "num_epochs": 2, "log_frequency": 1}
    return tiny_config(dataset_dir=str(dataset), output_dir=str(run), **settings | changes)


def losses(run: Path) -> list[float]:
    return [record["total_loss"] for record in read_metrics(run / "metrics.jsonl") if "total_loss" in record]


@pytest.mark.slow
@needs_compiler
@in_own_process  # PyTorch cannot compute gradients in children of a process that has compiled
def test_losses_are_those_without_it(dataset: Path, tmp_path: Path) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    for name, compiled in (("compiled", True), ("eager", False)):
        prepared = prepare_run(config_of(dataset, tmp_path / name, compile=compiled, dropout=0.0))
        assert len(prepared.data.training) % 7  # the last batch is smaller
        train_run(prepared)
        stats = torch._dynamo.utils.counters["stats"]
        assert stats["unique_graphs"] == 1 and not torch._dynamo.utils.counters["graph_break"]
        assert stats["calls_captured"] > 50
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-3)
    assert len(losses(tmp_path / "eager")) > 6


@pytest.mark.slow
@needs_compiler
@in_own_process  # PyTorch cannot compute gradients in children of a process that has compiled
def test_resumes_exactly(dataset: Path, tmp_path: Path) -> None:
    torch.compiler.reset()
    changes = {"dropout": 0.1, "use_vae": False}  # compiled in half the time; the losses above are with a CVAE
    train_run(prepare_run(config_of(dataset, tmp_path / "whole", **changes)))
    train_run(prepare_run(config_of(dataset, tmp_path / "half", **changes, num_epochs=1)))
    last = tmp_path / "half" / "checkpoint" / "act-train-last.pth"
    train_run(prepare_run(config_of(dataset, tmp_path / "half", **changes), resume_from=last))
    whole, half = (torch.load(tmp_path / name / "checkpoint" / "act-train-last.pth") for name in ("whole", "half"))
    assert all(torch.equal(whole[name], half[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "half")


def test_what_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = torch.nn.Linear(2, 2)
    compiled = CompiledPolicy(policy, 3, cuda_graphs=False)

    def fail(*args: object) -> None:
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no compiler"), None)

    monkeypatch.setattr(compiled, "_compiled", fail)
    monkeypatch.setattr(compiled, "_make_tables", lambda obs: None)
    monkeypatch.setattr(compiled, "_policy", lambda *args: args)
    assert compiled({}, torch.zeros(2), torch.zeros(2))[0] == {}  # a small batch is not compiled
    with pytest.raises(UserError, match=r"compile: true does not work here.*no compiler"):
        compiled({}, torch.zeros(3), torch.zeros(3))
