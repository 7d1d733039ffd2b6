"""LeRobot's side of a comparison, in its own environment: its policy class, its optimizer, its dataset class."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["HF_HUB_OFFLINE"] = "1"

import lerobot
import torch
from answering import serve
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from measuring import synchronize

IMAGE, STATE, ACTION = "observation.images.top", "observation.state", "action"


def make(kind: str, dataset: str, batch: int = 8, device: str = "cpu", **settings: Any) -> tuple[dict[str, Any], Any]:
    config = ACTConfig(
        input_features={
            IMAGE: PolicyFeature(FeatureType.VISUAL, (3, 480, 640)),
            STATE: PolicyFeature(FeatureType.STATE, (14,)),
        },
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (14,))},
        device=device,
        pretrained_backbone_weights=None,  # which weights they are does not change the work
    )
    data, backend = open_dataset(dataset, config.chunk_size)
    about = {"versions": f"LeRobot {lerobot.__version__}, PyTorch {torch.__version__}, videos by {backend}"}
    torch.manual_seed(0)
    if kind == "load":
        return about, loading(data, batch, **settings)
    samples = torch.utils.data.default_collate([data[i * len(data) // batch] for i in range(batch)])
    samples = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in samples.items()}
    policy = ACTPolicy(config).to(device)
    return about, {"train": training, "act": acting}[kind](config, policy, samples)


def open_dataset(path: str, chunk: int) -> tuple[LeRobotDataset, str]:
    """With the video reader that it prefers, or the other one where that does not work."""
    fps = LeRobotDataset("local/benchmark", root=path).fps
    times = {ACTION: [step / fps for step in range(chunk)]}
    try:
        import torchcodec.decoders  # noqa: F401  # fails without FFmpeg

        backend = "torchcodec"
    except (ImportError, OSError, RuntimeError):
        backend = "pyav"
    # No sample is read here: loading processes would inherit the open videos.
    return LeRobotDataset("local/benchmark", root=path, delta_timestamps=times, video_backend=backend), backend


def training(config: ACTConfig, policy: ACTPolicy, samples: dict[str, Any]) -> Any:
    """Its training step without loading and normalising: forward, backward, clipping, optimizer."""
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    policy.train()

    def work(steps: int, amp: bool) -> dict[str, Any]:
        synchronize(config.device)
        began = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(config.device, torch.bfloat16, enabled=amp):
                loss, _ = policy.forward(dict(samples))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
            optimizer.step()
            optimizer.zero_grad()
        synchronize(config.device)
        return {"seconds": (time.perf_counter() - began) / steps, "loss": loss.item()}

    for amp in (False, True):
        work(1, amp)
    return work


def acting(config: ACTConfig, policy: ACTPolicy, samples: dict[str, Any]) -> Any:
    policy.eval()
    one = {name: samples[name][:1] for name in (IMAGE, STATE)}

    def work(chunks: int, amp: bool) -> dict[str, Any]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            began = time.perf_counter()
            for _ in range(chunks):
                policy.predict_action_chunk(dict(one))
            return {"seconds": (time.perf_counter() - began) / chunks}

    for amp in (False, True):
        work(5, amp)
    return work


def loading(data: LeRobotDataset, batch: int, workers: int) -> Any:
    sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**9)
    loader = torch.utils.data.DataLoader(data, batch, sampler=sampler, num_workers=workers, prefetch_factor=2)
    batches = iter(loader)

    def work(batches_wanted: int) -> dict[str, Any]:
        for _ in range(4 * workers):  # those that were loaded while nobody asked
            next(batches)
        began = time.perf_counter()
        loaded = [next(batches)[IMAGE].shape for _ in range(batches_wanted)]
        seconds = (time.perf_counter() - began) / sum(shape[0] for shape in loaded)
        time.sleep(2)  # what is loaded ahead now must not slow the other side
        return {"seconds": seconds, "image": list(loaded[0][1:])}

    return work


if __name__ == "__main__":
    serve(make)
