"""`bimact latency`: how long a chunk takes, by runtime and precision."""

from __future__ import annotations

import argparse

from bimact.cli.arguments import Commands
from bimact.cli.export import observations_of, path_of, policy_of
from bimact.errors import UserError
from bimact.files import expand_home


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "latency",
        allow_abbrev=False,
        help="measure how long a chunk takes, by runtime and precision",
        description="Time a policy's chunks for one robot, by PyTorch and by exported models, on recorded "
        "observations, and print the control rates that they allow.",
    )
    parser.add_argument("--run", dest="run_dir", required=True, type=expand_home, help="the run directory, or a policy")
    parser.add_argument("--checkpoint", help="best, last or an epoch (default: best)")
    parser.add_argument(
        "--runtimes", default="torch,onnxruntime,openvino", help="(default: torch,onnxruntime,openvino)"
    )
    parser.add_argument("--predictions", type=int, default=50, help="timed per row (default: 50)")
    parser.add_argument("--device", default="auto", help="of PyTorch: cuda, cuda:1, mps, cpu or auto")
    parser.add_argument(
        "--dataset_dir", type=expand_home, help="observations to predict from (default: those of the training)"
    )
    parser.add_argument("--json", type=path_of, help="file for the table")
    parser.set_defaults(run=_latency)
    return parser


def _latency(options: argparse.Namespace) -> None:
    import tempfile
    from pathlib import Path

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from bimact.deploy.export import export, random_histories
    from bimact.deploy.exported import ExportedPolicy
    from bimact.deploy.latency import measure
    from bimact.files import write_json

    wanted = [name.strip() for name in options.runtimes.split(",") if name.strip()]
    for name in wanted:
        if name not in ("torch", "onnxruntime", "openvino"):
            raise UserError(f"--runtimes has '{name}', it has to be torch, onnxruntime or openvino")
    exact = policy_of(options, "cpu", "no")
    recorded = observations_of(options, exact)
    histories = recorded if recorded is not None else random_histories(exact)
    found = []
    if "torch" in wanted:
        device = policy_of(options, options.device, "no").device.type
        found += [
            measure(policy_of(options, options.device, name), f"torch, {device}", label, histories, options.predictions)
            for name, label in (("no", "float32"), ("bf16", "bfloat16"))
        ]
    with tempfile.TemporaryDirectory() as folder:
        for runtime, kind, precisions in (
            ("onnxruntime", "onnx", ("float32", "int8")),
            ("openvino", "openvino", ("float32", "bfloat16")),
        ):
            for precision in precisions if runtime in wanted else ():
                place = Path(folder) / f"{kind}-{precision}"
                export(exact, kind, place, histories, precision=precision, say=lambda line: None)
                policy = ExportedPolicy.load(place, runtime)
                found.append(measure(policy, runtime, precision, histories, options.predictions))
    observations = "recorded observations" if recorded is not None else "random observations"
    title = f"{exact.metadata.name}: a chunk for one robot, {observations}"
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for column in ("runtime", "precision"):
        table.add_column(column, no_wrap=True)
    for column in ("median\nms", "p99\nms", "memory\nMB", "chunk\nHz", "async\nHz", "ensemble\nHz"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found:
        rates = row.rates(exact.metadata)
        numbers = (f"{row.median():.1f}", f"{row.p99():.1f}", f"{row.memory:.0f}")
        hertz = (f"{rates[name]:.0f}" for name in ("chunk", "async", "temporal_ensemble"))
        table.add_row(row.runtime, row.precision, *numbers, *hertz)
    Console().print(table)
    print("Control rates by the 99th percentile; memory is the process's largest so far.")
    if options.json is not None:
        content = [row.as_dict(exact.metadata) for row in found]
        write_json(options.json, {"policy": exact.metadata.name, "observations": observations, "rows": content})
