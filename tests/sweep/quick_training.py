"""A training of a moment: takes the options of the real one, writes its files, and learns nothing.

Its val_loss falls to |log10(lr) + 5|. A kl_weight of 50 fails. On SIGTERM it saves itself, to go on by --resume_from.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path


def read_options(arguments: list[str]) -> dict[str, str]:
    options, rest = {}, iter(arguments)
    for argument in rest:
        name, equals, value = argument[2:].partition("=")
        options[name] = value if equals else next(rest)
    return options


def main() -> None:
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    options = read_options(sys.argv[1:])
    run = Path(options["output_dir"])
    checkpoint = run / "checkpoint" / "act-train-last.pth"
    first = json.loads(checkpoint.read_text()) if "resume_from" in options else 0
    if (run / "config.yaml").exists() and not first:
        sys.exit(f"{run} holds a run already")
    (run / "config.yaml").write_text(json.dumps(options))
    (run / "environment.json").write_text(json.dumps(dict(os.environ)))
    if float(options.get("kl_weight", 1)) == 50:
        print("a line before", file=sys.stderr)
        sys.exit("CUDA out of memory")
    name = os.environ.get("QUICK_LOGS", "val_loss")
    floor = abs(math.log10(float(options["lr"])) + 5)
    with (run / "metrics.jsonl").open("a") as metrics:
        for epoch in range(first, int(options.get("num_epochs", 4))):
            time.sleep(float(os.environ.get("QUICK_EPOCH", "0.01")))
            metrics.write(json.dumps({"step": 10 * epoch, "epoch": epoch + 1, "total_loss": floor}) + "\n")
            metrics.write(json.dumps({"step": 10 * epoch, "epoch": epoch + 1, name: floor + 1 / (epoch + 1)}) + "\n")
            metrics.flush()
            if asked:
                checkpoint.parent.mkdir(exist_ok=True)
                checkpoint.write_text(json.dumps(epoch + 1))
                sys.exit(130)
    print("done")


if __name__ == "__main__":
    main()
