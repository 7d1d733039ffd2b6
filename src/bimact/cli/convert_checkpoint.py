"""`bimact convert-checkpoint`: a policy of other software → a run of bimact, and back."""

from __future__ import annotations

import argparse
from pathlib import Path

from bimact.cli.arguments import Commands, image_size
from bimact.files import check_writable, expand_home


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "convert-checkpoint",
        allow_abbrev=False,
        help="convert a LeRobot or original ACT policy to a run, or a run to a LeRobot policy",
        description="Convert a trained policy. The result predicts the same actions. SRC is the folder of a "
        "LeRobot ACT policy, a checkpoint of the original ACT (policy_best.ckpt, or its folder), or a run of bimact. "
        "No code in any file is run, and nothing is overwritten.",
    )
    parser.add_argument("source", metavar="SRC", type=_path, help="the policy")
    parser.add_argument("target", metavar="DST", type=_path, help="the folder to write, which must not exist")
    parser.add_argument(
        "--to", choices=("bimact", "lerobot"), help="what to write (default: lerobot of a run, else bimact)"
    )
    parser.add_argument("--cameras", help="names of the cameras, such as top,left; required for the original ACT")
    parser.add_argument(
        "--stats", type=_path, metavar="FILE", help="original ACT: dataset_stats.pkl (default: next to SRC)"
    )
    parser.add_argument("--nheads", type=int, help="original ACT: number of attention heads (default: 8)")
    parser.add_argument("--image_size", help="height x width of the cameras (default for the original ACT: 480x640)")
    parser.add_argument("--checkpoint", help="of a run: best, last or an epoch (default: best)")
    parser.set_defaults(run=_convert)
    return parser


def _path(text: str) -> Path:
    return Path(expand_home(text))


def _convert(options: argparse.Namespace) -> None:
    from bimact.interop.convert import PolicyFiles, convert

    check_writable(options.target.parent)
    source = PolicyFiles(
        options.source,
        cameras=None if options.cameras is None else options.cameras.split(","),
        stats=options.stats,
        nheads=options.nheads,
        image_size=None if options.image_size is None else image_size(options.image_size),
        checkpoint=options.checkpoint,
    )
    converted = convert(source, options.target, options.to)
    policy, config = converted.policy, converted.policy.config
    size = "" if config.image_size is None else f", {config.image_size[0]}x{config.image_size[1]}"
    layers = f"{config.num_encoder_layers} encoder and {config.num_decoder_layers} decoder layers"
    executed = "all are executed" if config.execute_steps is None else f"{config.execute_steps} are executed"
    if config.temporal_ensemble:
        executed = f"each is averaged with those of earlier chunks (m = {config.ensemble_coefficient:g})"
    facts = {
        "From": f"{options.source} ({converted.origin})",
        "To": str(options.target),
        "Cameras": ", ".join(policy.cameras) + size,
        "State and action": f"{config.state_dim} and {config.action_dim} numbers",
        "Chunk": f"{config.chunk_size} steps, of which {executed}",
        "Network": f"{config.encoder.model_name or 'resnet18'}, width {config.hidden_dim}, {layers}",
        "Parameters": f"{sum(parameter.numel() for parameter in policy.parameters()):,}",
    }
    for name, value in facts.items():
        print(f"{name}: {value}")
    for note in converted.notes:
        print(f"Note: {note}")
    if (options.target / "model.safetensors").exists():
        print(f"\nNext: give it to LeRobot's commands as --policy.path={options.target}")
    else:
        print(f"\nNext: bimact evaluate --run {options.target} --dataset_dir /path/to/your/dataset")
