"""`bimact push`: a run's policy to the Hugging Face hub."""

from __future__ import annotations

import argparse

from bimact.cli.arguments import Commands
from bimact.files import expand_home


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "push",
        allow_abbrev=False,
        help="upload a run's policy to the Hugging Face hub, with a model card",
        description="Upload a run's policy to the Hugging Face hub: weights (safetensors), settings without paths, "
        "evaluation, a video and a model card; and LeRobot's files, where the network is LeRobot's ACT. A new "
        "repository is private. What will be uploaded is printed before.",
    )
    parser.add_argument("run_dir", metavar="RUN", type=expand_home, help="the run directory")
    parser.add_argument("name", metavar="USER/NAME", help="of the policy on the hub")
    parser.add_argument("--checkpoint", default="best", help="best, last or an epoch (default: best)")
    add_upload_options(parser)
    parser.set_defaults(run=_push)
    return parser


def add_upload_options(parser: argparse.ArgumentParser) -> None:
    """The options that all uploads have."""
    parser.add_argument("--public", action="store_true", help="a new repository can be read by everybody")
    parser.add_argument("--license", help="as the hub names it, such as apache-2.0 (default: none is given)")
    parser.add_argument("--message", default="Upload by bimact", help='of the commit (default: "Upload by bimact")')
    parser.add_argument("--dry_run", action="store_true", help="print what would be uploaded, and the card")


def _push(options: argparse.Namespace) -> None:
    from bimact.evaluation.model_card import CARD, policy_upload

    upload, notes = policy_upload(options.run_dir, options.name, checkpoint=options.checkpoint, license=options.license)
    page = upload.announce_and_send(
        notes, CARD, public=options.public, message=options.message, is_trial=options.dry_run
    )
    if page is not None:
        print(f"Uploaded: {page}\nNext: bimact serve --run {options.name}")
