"""`bimact push-dataset`: demonstrations to the Hugging Face hub."""

from __future__ import annotations

import argparse

from bimact.cli.arguments import Commands
from bimact.cli.push import add_upload_options
from bimact.files import expand_home


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "push-dataset",
        allow_abbrev=False,
        help="upload demonstrations to the Hugging Face hub, with a dataset card",
        description="Check a dataset, and upload its files as they are to the Hugging Face hub, with a dataset card "
        "made of what the check finds. A new repository is private. What will be uploaded is printed before.",
    )
    parser.add_argument("dataset_dir", metavar="DATASET", type=expand_home, help="the demonstrations' folder or file")
    parser.add_argument("name", metavar="USER/NAME", help="of the dataset on the hub")
    parser.add_argument(
        "--no_images", action="store_true", help="check all but the images, which take most of the time"
    )
    add_upload_options(parser)
    parser.set_defaults(run=_push_dataset)
    return parser


def _push_dataset(options: argparse.Namespace) -> None:
    from bimact.check.dataset_card import CARD, CHECKED, dataset_upload

    upload, report, notes = dataset_upload(
        options.dataset_dir, options.name, license=options.license, images=not options.no_images
    )
    if report.errors:
        notes.append(f"the check found {len(report.errors)} errors: `bimact check {options.dataset_dir}` lists them")
    card = CHECKED if CHECKED in upload.files else CARD
    page = upload.announce_and_send(
        notes, card, public=options.public, message=options.message, is_trial=options.dry_run
    )
    if page is not None:
        print(f"Uploaded: {page}\nNext: bimact train --dataset_dir {options.name}")
