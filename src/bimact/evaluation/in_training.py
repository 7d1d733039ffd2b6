"""Success rates during a training: rollouts of its present weights in a process of their own, beside the training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bimact.config import Config
from bimact.device import choose_device
from bimact.errors import UserError
from bimact.evaluation.rollout import RolloutSettings, check_robot, evaluate_rollouts, prompt_for
from bimact.files import sha256_of, write_json
from bimact.machine import usable_cores
from bimact.policy.act import build_act_policy
from bimact.policy.loading import LoadedPolicy, load_weights
from bimact.policy.metadata import Interface
from bimact.run_directory import EVALUATIONS, Run


class RolloutsInTraining:
    """Starts one evaluation at a time for `ActTrainer`; results stay in `R/evaluations`, so that none is made twice.

    Args:
        run: of the training; its `config.yaml` is written when the first evaluation starts.
        config: complete.

    Raises:
        UserError: if there is no such task, or the policy is for another robot than the simulated one.
    """

    def __init__(self, run: Run, config: Config) -> None:
        if config.eval_task is None:
            raise ValueError("eval_task is null")
        check_robot(config, config.eval_task)
        prompt_for(config, config.eval_task)
        self._folder = run.path / EVALUATIONS
        self._run = run
        self._process: subprocess.Popen[bytes] | None = None
        self._step = 0

    def knows(self, step: int, digest: str) -> bool:
        """Whether weights, given by their step and SHA-256, were evaluated before the run was resumed."""
        return self._content(step).get("weights_sha256") == digest

    def start(self, step: int, weights: Path, digest: str | None = None) -> str:
        """Evaluate weights that belong to an optimizer step; one evaluation at most runs at once.

        Args:
            step: of the weights.
            weights: their file; not needed if `knows` them.
            digest: their SHA-256; None: computed.

        Returns:
            the SHA-256.
        """
        if self._process is not None:
            raise ValueError("an evaluation is running")
        self._step = step
        digest = sha256_of(weights) if digest is None else digest
        if self.knows(step, digest):
            return digest
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", __spec__.name, str(self._run.path), str(weights), str(self._file(step))]
        with (self._folder / "output.txt").open("wb") as output:
            # In a session of its own: Ctrl-C in the terminal is the training's, which then ends the evaluation.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
            )
        return digest

    def result(self, wait: bool = False) -> dict[str, Any] | None:
        """`step`, `success_rate`, `success_low` and `success_high` (Wilson's 95% interval); None while it runs.

        Args:
            wait: until it has ended.

        Raises:
            UserError: if the evaluation failed; the sentence has its last line.
        """
        if self._process is not None:
            if wait:
                self._process.wait()
            if self._process.poll() is None:
                return None
            status = self._process.returncode
            self._process = None
            if status != 0:
                output = self._folder / "output.txt"
                lines = output.read_text(errors="replace").strip().splitlines() or ["no output"]
                raise UserError(f"the rollouts of step {self._step} failed: {lines[-1]} (all of it: {output})")
        content = self._content(self._step)
        low, high = content["interval_95"]
        return {
            "step": self._step,
            "success_rate": content["success_rate"],
            "success_low": low,
            "success_high": high,
            "successes": content["successes"],
            "rollouts": content["rollouts"],
        }

    def close(self) -> None:
        """End an evaluation that is running."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _file(self, step: int) -> Path:
        return self._folder / f"step-{step}.json"

    def _content(self, step: int) -> dict[str, Any]:
        try:
            return dict(json.loads(self._file(step).read_text()))
        except (OSError, ValueError):
            return {}


def main(run_path: str, weights: str, result: str) -> None:
    """Roll out weights as the run's config says; the training keeps most of the machine."""
    if hasattr(os, "nice"):
        os.nice(5)
    torch.set_num_threads(max(1, usable_cores() // 4))
    run = Run(Path(run_path))
    config, path = run.config, Path(weights)
    network = build_act_policy(config)
    network.load_state_dict(load_weights(path))
    device = choose_device(config.device)
    interface = Interface.read(run.interface_path)
    loaded = LoadedPolicy(network.to(device).eval(), config, device, run, path, interface)
    settings = RolloutSettings(
        task=config.eval_task or "",
        rollouts=config.eval_rollouts,
        seed=config.eval_seed,
        parallel=min(config.eval_rollouts, max(1, usable_cores() // 2), 8),
    )
    write_json(Path(result), {**evaluate_rollouts(loaded, settings), "weights_sha256": sha256_of(path)})


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
