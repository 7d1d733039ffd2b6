"""`bimact export`: a policy for other runtimes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimact.cli.arguments import Commands
from bimact.cli.arguments import image_size as parsed_size
from bimact.errors import UserError
from bimact.files import check_writable, expand_home

if TYPE_CHECKING:
    from bimact.policy.inference import Policy

_PLACES = ("onnx", "openvino", "torch_export", "lerobot", "lerobot_plugin")


def path_of(text: str) -> Path:
    return Path(expand_home(text))


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "export",
        allow_abbrev=False,
        help="export a policy to ONNX, OpenVINO, torch.export or LeRobot",
        description="Write a policy as one file for another runtime, and compare it with the policy on recorded "
        "observations. `bimact serve --model` serves ONNX and OpenVINO models without PyTorch.",
    )
    parser.add_argument("--run", dest="run_dir", required=True, type=expand_home, help="the run directory, or a policy")
    parser.add_argument("--to", required=True, choices=_PLACES, help="what to write")
    parser.add_argument("--output", required=True, type=path_of, help="the directory to write, which must not exist")
    parser.add_argument("--checkpoint", help="best, last or an epoch (default: best)")
    parser.add_argument(
        "--precision",
        default="float32",
        help="float32; onnx: float16, int8; openvino: bfloat16, float16 (default: float32)",
    )
    parser.add_argument(
        "--dataset_dir", type=expand_home, help="observations to compare with (default: those of the training)"
    )
    parser.add_argument(
        "--task",
        help="simulated task in which the exported model is compared with the policy on the same scenes (default: "
        "that of the training, if --precision is below float32)",
    )
    parser.add_argument("--rollouts", type=int, default=50, help="of that comparison; 0: none (default: 50)")
    parser.add_argument("--seed", type=int, default=1000, help="of its first scene (default: 1000)")
    parser.add_argument("--image_size", help="of the cameras, height x width, if the run does not specify it")
    parser.set_defaults(run=_export)
    return parser


def policy_of(options: argparse.Namespace, device: str, precision: str) -> Policy:
    import bimact

    size = getattr(options, "image_size", None)
    return bimact.load_policy(
        options.run_dir,
        checkpoint=options.checkpoint,
        device=device,
        precision=precision,
        image_size=parsed_size(size) if size else None,
    )


def observations_of(options: argparse.Namespace, policy: Policy) -> dict[str, Any] | None:
    """Recorded ones, if there is a dataset."""
    from bimact.data.samples import sample_histories
    from bimact.run_directory import Run

    path = options.dataset_dir
    if path is None:
        run = Run.of(options.run_dir)
        path = run.dataset()[0] if run.config_path.is_file() else None
        if path is None or not Path(path).exists():
            return None
    return sample_histories(policy.config, path)


def _export(options: argparse.Namespace) -> None:
    check_writable(options.output.parent)
    if options.to == "lerobot":
        from bimact.interop.convert import PolicyFiles, convert

        if options.precision != "float32":
            raise UserError("--precision has no effect for lerobot, whose checkpoints are float32")
        convert(PolicyFiles(Path(options.run_dir), checkpoint=options.checkpoint), options.output, "lerobot")
        print(f"Exported to {options.output}: give it to LeRobot's commands as --policy.path={options.output}")
        return
    policy = policy_of(options, "cpu", "no")
    if options.to == "lerobot_plugin":
        from bimact.files import atomic_folder
        from bimact.interop.convert import PolicyFiles, read
        from bimact.interop.lerobot_writer import write_lerobot_plugin

        if options.precision != "float32":
            raise UserError("--precision has no effect for lerobot_plugin, which contains the run's weights")
        if options.output.exists():
            raise UserError(f"{options.output} exists: choose another --output")
        network = read(PolicyFiles(Path(options.run_dir), checkpoint=options.checkpoint)).policy
        with atomic_folder(options.output) as folder:
            write_lerobot_plugin(network, policy.metadata, folder)
        print(f"Exported to {options.output}: with packages/lerobot-policy-bimact in LeRobot's environment, give it to")
        print(f"LeRobot's commands as --policy.path={options.output}")
        return
    from bimact.deploy.export import export

    export(policy, options.to, options.output, observations_of(options, policy), precision=options.precision)
    size = sum(file.stat().st_size for file in options.output.iterdir()) / 1e6
    print(f"Exported to {options.output} ({size:.1f} MB)")
    task = options.task
    if task is None and options.precision != "float32" and is_simulated(policy.metadata.interface.task):
        task = policy.metadata.interface.task
    if task is not None and options.rollouts:
        _compare_success(options, task)
    if options.to != "torch_export":
        print(f"Next: bimact serve --model {options.output}")


def is_simulated(task: str | None) -> bool:
    """Whether a task's description is the name of a simulated task."""
    try:
        from bimact.sim.tasks import find_task

        return task is not None and find_task(task) is not None
    except (UserError, ImportError):  # no such task, or no simulation
        return False


def _compare_success(options: argparse.Namespace, task: str) -> None:
    """Roll policy and exported model out from the same scenes, and keep the comparison beside the model."""
    from rich.console import Console

    from bimact.deploy.exported import METADATA, ExportedPolicy
    from bimact.evaluation.compare import compare_rollouts, comparison_table, verdict
    from bimact.evaluation.rollout import RolloutSettings
    from bimact.files import write_json
    from bimact.policy.loading import load_run

    loaded = load_run(options.run_dir, options.checkpoint or "best", "cpu")
    settings = RolloutSettings(task, options.rollouts, options.seed)
    model = ExportedPolicy.load(options.output)
    result = compare_rollouts(loaded, loaded, settings, model_b=model)
    path = options.output / METADATA
    kept = {name: value for name, value in result.items() if name not in ("a", "b", "each")}
    write_json(path, {**json.loads(path.read_text()), "success": kept})
    print(f"Success in {task}, A: the policy, B: the exported model ({options.precision}, {model.runtime})")
    Console(width=None if sys.stdout.isatty() else 120).print(comparison_table(result))
    print(verdict(result))
