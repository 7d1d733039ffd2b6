"""What tests share: small datasets and small policies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from browser import Browser, find_chromium
from guide_files import write_dataset
from hypothesis import settings
from warm_python import WarmPython

from bimact.config import Config, to_config
from bimact.machine import usable_cores

# The compiler of PyTorch and the renderer of the simulation each bring an LLVM; the process survives this order alone.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401
# Notes on where caches lie go to a folder of this run; matplotlib's list of fonts, which takes long, is kept.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
_CACHE = tempfile.TemporaryDirectory(prefix="bimact-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
# Campaigns: `make test-long` kills, mutates and demonstrates as often as it takes to find what is rare; `make test`
# samples them; `make test-quick` takes the first case of each parametrized test and few examples.
LONG = os.environ.get("BIMACT_TESTS") == "long"
QUICK = os.environ.get("BIMACT_TESTS") == "quick"
# A minute or more each.
LONGEST = ("test_wheel", "test_compiled", "test_export", "test_warnings", "test_notebooks", "test_kill", "test_ranks")
# Compiled modules are kept, also where the environment says not to: tests start many processes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Small models, and as many tests at once as there are cores: threads would only wait for each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
# A busy machine is slow, and that is no fault of a test.
settings.register_profile("bimact", deadline=None, **({"max_examples": 10} if QUICK else {}))
settings.load_profile("bimact")
# Background jobs of a shell ignore Ctrl-C, those of nohup lost terminals: not so the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Half as many again as there are cores: a sixth of the time tests wait, for processes, signals and time-outs."""
    return usable_cores() * 3 // 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files come first, then those with slow tests, so that no process is left alone with one at the end.

    Tests of a GPU run by `pytest -m gpu` alone: a process that has used one can no longer be forked, as others do.
    """
    if "gpu" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="run it by pytest -m gpu"))
    if QUICK:
        firsts = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        items[:] = [item for item in items if firsts[item.nodeid.partition("[")[0]] is item]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.stem not in LONGEST, item.path not in slow))


def pytest_sessionfinish(exitstatus: int) -> None:
    """Ctrl-C leaves no process behind, also of those in sessions of their own."""
    if exitstatus == pytest.ExitCode.INTERRUPTED:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "dataset", [9, 12, 7, 10])


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads datasets in this process, where each example of a test would start child processes: daemons may not."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]


def tiny_config(**changes: Any) -> Config:
    """A policy that trains in a moment."""
    encoder = {"name": "conv", "pretrained": None, "freeze": False, "fuse": "tokens", "channels": [8, 8]}
    settings: dict[str, Any] = {
        "temporal_context": 2,
        "chunk_size": 5,
        "hidden_dim": 16,
        "nheads": 2,
        "dim_feedforward": 32,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "n_vae_encoder_layers": 1,
        "latent_dim": 4,
        "batch_size": 4,
        "val_split": 0.25,
        "lr": 1e-3,
        "num_epochs": 2,
        "checkpoint_frequency": 1,
        "log_frequency": 2,
        "num_workers": 0,
        "device": "cpu",
        "tensorboard": False,
        "encoder": {**encoder, **changes.pop("encoder", {})},
    }
    return to_config({**settings, **changes})


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython]:
    """Commands whose processes have PyTorch loaded when they start."""
    python = WarmPython(tmp_path_factory.mktemp("warm"))
    yield python
    python.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    try:
        yield browser
    finally:
        browser.close()
