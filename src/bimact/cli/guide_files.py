"""`bimact guide-files`: the files of the training guide, for those who installed bimact without its repository."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bimact.cli.arguments import Commands
from bimact.errors import UserError
from bimact.files import expand_home


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "guide-files",
        allow_abbrev=False,
        help="write the training guide's scripts/, configs/, policy/, train/ and demo_training.sh to a directory",
        description="Write the files that the training guide's commands and imports need in their working directory: "
        "scripts/train_act.py, configs/, policy/, train/ and demo_training.sh. Existing files are kept.",
    )
    parser.add_argument("target", metavar="DIR", type=expand_home, help="the directory, such as . or act")
    parser.set_defaults(run=_guide_files)
    return parser


def _guide_files(options: argparse.Namespace) -> None:
    import bimact
    from bimact.files import check_writable, write_bytes

    package, target = Path(bimact.__file__).parent, Path(options.target)
    sources = {f"configs/{config.name}": config for config in (package / "configs").glob("*.yaml")}
    for folder, _, names in os.walk(package / "guide_files", followlinks=True):
        for name in names:
            if not name.endswith(".pyc"):
                path = Path(folder) / name
                sources[path.relative_to(package / "guide_files").as_posix()] = path
    check_writable(target)
    contents = {name: source.read_bytes() for name, source in sorted(sources.items())}
    changed = [name for name in contents if (target / name).exists() and (target / name).read_bytes() != contents[name]]
    if changed:
        raise UserError(
            f"{target.absolute()} has other content in {', '.join(changed)}, and nothing was written: "
            "choose another directory, or move these files away"
        )
    for name, content in contents.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target / name, content)
        if name.endswith(".sh"):
            (target / name).chmod(0o755)
    print(f"{len(contents)} files in {target.absolute()}")
    print(f"Next: cd {target} && python scripts/train_act.py --config configs/policy_act.yaml --dataset_dir ...")
