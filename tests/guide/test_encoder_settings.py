"""Each key of the guide's visual encoder changes what it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from policies import (
    ROOT,
    count,
    make_batch,
    make_policy,
    predict,
    prepare,
    train,
    weights,
)
from torch import Tensor

from bimact.config import to_config
from bimact.encoder.clip_vit import ClipEncoder
from bimact.encoder.conv import ConvEncoder
from bimact.encoder.pri3d import Pri3dEncoder
from bimact.encoder.timm_backbone import TimmEncoder
from bimact.policy.act import ActPolicy
from bimact.training.act_trainer import train_run
from bimact.training.prepare import prepare_run


@pytest.fixture(scope="module", autouse=True)
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`small-clip`, a model of open_clip that is made in a moment."""
    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1}
    (folder / "small-clip.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)


# visual encoder


@pytest.mark.parametrize(
    ("encoder", "kind", "width"),
    [
        ({"name": "clip_vit", "model_name": "small-clip"}, ClipEncoder, 24),
        ({"name": "pri3d"}, Pri3dEncoder, 512),
        ({"name": "timm", "model_name": "test_resnet"}, TimmEncoder, None),
        ({"name": "conv"}, ConvEncoder, 8),
    ],
    ids=lambda value: value.get("name") if isinstance(value, dict) else None,
)
def test_encoder_name_chooses_the_encoder(encoder: dict[str, Any], kind: type, width: int | None) -> None:
    policy = make_policy(encoder=encoder)
    assert type(policy.image_encoder) is kind
    assert width in (None, policy.image_encoder.out_dim)
    assert predict(policy).shape == (2, 5, 14)


def test_encoder_model_name_chooses_the_network() -> None:
    widths = {}
    for name in ("resnet18", "resnet50"):
        widths[name] = make_policy(encoder={"name": "pri3d", "model_name": name}).image_encoder.out_dim
    assert widths == {"resnet18": 512, "resnet50": 2048}


def test_pretrained_null_is_drawn_by_the_seed(dataset: Path, tmp_path: Path) -> None:
    """A frozen encoder keeps what it began with, so the checkpoints show it."""
    for run, seed in (("one", 0), ("again", 0), ("other", 1)):
        train(dataset, tmp_path / run, seed=seed, num_steps=1, encoder={"freeze": True})
    one, again, other = (_encoder_weights(tmp_path / run) for run in ("one", "again", "other"))
    assert all(torch.equal(one[name], again[name]) for name in one)
    matrices = [name for name, value in one.items() if value.ndim > 1]
    assert matrices and not any(torch.equal(one[name], other[name]) for name in matrices)


def _encoder_weights(run: Path) -> dict[str, Tensor]:
    return {name: value for name, value in weights(run).items() if name.startswith("image_encoder.")}


def test_pretrained_path_is_loaded_into_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(5)
    resnet = torchvision.models.resnet18()
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    loaded = make_policy(encoder={"name": "pri3d", "pretrained": str(tmp_path / "resnet18.pth")})
    state = resnet.state_dict()
    own = {name.removeprefix("backbone."): value for name, value in loaded.image_encoder.state_dict().items()}
    assert len(own) == 100 and all(torch.equal(value, state[name]) for name, value in own.items())

    clip = {"name": "clip_vit", "model_name": "small-clip"}
    torch.save(
        make_policy(seed=7, encoder=clip).get_submodule("image_encoder.visual").state_dict(), tmp_path / "clip.pt"
    )
    loaded = make_policy(seed=8, encoder={**clip, "pretrained": str(tmp_path / "clip.pt")})
    expected = make_policy(seed=7, encoder=clip)
    for one, two in zip(loaded.image_encoder.parameters(), expected.image_encoder.parameters()):
        assert torch.equal(one, two)


@pytest.mark.slow
def test_pretrained_openai_without_a_network_ends_in_one_sentence(dataset: Path, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    cut_off = {"HF_HUB_OFFLINE": "1", "https_proxy": nowhere, "http_proxy": nowhere}
    process = subprocess.run(
        [sys.executable, "scripts/train_act.py", "--config", "configs/policy_act.yaml", "--device", "cpu"]
        + ["--dataset_dir", str(dataset), "--output_dir", str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, **cut_off, "HF_HOME": str(tmp_path), "HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    sentences = process.stderr.strip().splitlines()
    assert len(sentences) == 1 and "cannot get CLIP weights 'openai' of ViT-B-32" in sentences[0]
    assert "give a local file by encoder.pretrained: /path/to/file" in sentences[0]
    assert "encoder.pretrained: null for random weights" in sentences[0]
    assert not (tmp_path / "run").exists()


ENCODERS: list[dict[str, Any]] = [
    {"name": "conv"},
    {"name": "pri3d"},
    {"name": "timm", "model_name": "test_resnet"},
    {"name": "clip_vit", "model_name": "small-clip"},
]


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder["name"])
def test_freeze_keeps_the_encoder_to_the_last_bit(
    dataset: Path, tmp_path: Path, encoder: dict[str, Any], freeze: bool
) -> None:
    chosen = {**encoder, "freeze": freeze}
    prepared = prepare(dataset, tmp_path / "run", encoder=chosen, num_steps=2, val_split=0)
    before = {f"image_encoder.{name}": x.clone() for name, x in prepared.policy.image_encoder.state_dict().items()}
    trainer = train_run(prepared)
    after = weights(tmp_path / "run")  # parameters and batch norm's statistics
    of_encoder = dict(trainer.policy.image_encoder.named_parameters())
    trained = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    states = trainer.optimizer.state_dict()["state"]
    assert len(states) == len(trained)
    if freeze:
        assert changed == set()
        assert not trained & {id(parameter) for parameter in of_encoder.values()}
    else:
        used = {f"image_encoder.{name}": parameter for name, parameter in of_encoder.items() if parameter.requires_grad}
        assert used and set(used) <= changed
        assert {id(parameter) for parameter in used.values()} <= trained
        buffers = {name for name in before if "running_mean" in name}
        moving = buffers if encoder["name"] != "pri3d" else set()  # whose batch norm is frozen anyway
        assert moving <= changed and bool(moving) == (encoder["name"] in ("conv", "timm"))


def test_fuse_has_the_parameters_of_its_kind_and_tells_cameras_apart_or_not() -> None:
    policies = {fuse: make_policy(encoder={"fuse": fuse}) for fuse in ("mean", "concat_mlp", "gated", "tokens")}
    mean = policies["mean"]
    more = {fuse: count(policy) - count(mean) for fuse, policy in policies.items()}
    assert more == {"mean": 0, "concat_mlp": (2 * 16 * 16 + 16) + (16 * 16 + 16), "gated": 16 + 1, "tokens": 16}
    for fuse, policy in policies.items():
        policy.load_state_dict(mean.state_dict() | _own_parts(policy, mean))
        if fuse == "tokens":
            torch.nn.init.normal_(policy.camera_positions)  # they begin as zeros and are learned
    chunks = {fuse: predict(policy) for fuse, policy in policies.items()}
    for fuse, chunk in chunks.items():
        assert fuse == "mean" or not torch.allclose(chunk, chunks["mean"], atol=1e-4)
        obs, _ = make_batch(mean.config)
        swapped = {**obs, "image_left": obs["image_right"], "image_right": obs["image_left"]}
        with torch.no_grad():
            same = torch.allclose(policies[fuse](swapped)[0], chunk, atol=1e-5)
        assert same == (fuse in ("mean", "gated")), fuse


def _own_parts(policy: ActPolicy, other: ActPolicy) -> dict[str, Tensor]:
    """What a policy's state has in another shape than the other's, or alone."""
    theirs = other.state_dict()
    own = policy.state_dict()
    return {name: x for name, x in own.items() if name not in theirs or theirs[name].shape != x.shape}


@pytest.mark.parametrize("fuse", ["mean", "concat_mlp", "gated"])
def test_fuse_is_a_plain_reference(fuse: str) -> None:
    fusion = make_policy(encoder={"fuse": fuse}).fusion
    tokens = torch.randn(3, 2, 6, 16)  # samples, cameras, places, width
    state = {name: value.numpy() for name, value in fusion.state_dict().items()}
    expected = np.zeros((3, 6, 16), dtype=np.float32)
    for sample in range(3):
        for place in range(6):
            left, right = tokens[sample, :, place].numpy()
            if fuse == "mean":
                expected[sample, place] = (left + right) / 2
            elif fuse == "gated":
                scores = np.exp([x @ state["score.weight"][0] + state["score.bias"][0] for x in (left, right)])
                expected[sample, place] = (scores[0] * left + scores[1] * right) / scores.sum()
            else:
                hidden = state["mlp.0.weight"] @ np.concatenate([left, right]) + state["mlp.0.bias"]
                expected[sample, place] = state["mlp.2.weight"] @ np.maximum(hidden, 0) + state["mlp.2.bias"]
    with torch.no_grad():
        np.testing.assert_allclose(fusion(tokens).numpy(), expected, atol=1e-5)


# custom encoders: the guide's two variants


@pytest.mark.slow
@pytest.mark.parametrize(
    ("snippet", "model_name"),
    [
        ("encoder:\n  name: pri3d\n  pretrained: true\n  freeze: false\n", "resnet18"),
        ("encoder:\n  pretrained: null\n  freeze: false\n", "small-clip"),
    ],
    ids=["pri3d", "random"],
)
def test_the_guides_encoder_variants_train(dataset: Path, tmp_path: Path, snippet: str, model_name: str) -> None:
    main = OmegaConf.load(ROOT / "configs" / "policy_act.yaml")
    variant = OmegaConf.to_container(OmegaConf.merge(main, OmegaConf.create(snippet)))
    assert isinstance(variant, dict)
    assert to_config({**variant, "encoder": {**variant["encoder"], "model_name": model_name}})
    small = {"hidden_dim": 16, "nheads": 2, "dim_feedforward": 32, "batch_size": 2, "num_steps": 2, "lr": 1e-3}
    here = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "run"), "device": "cpu", "mixed_precision": "no"}
    encoder = {**variant["encoder"], "model_name": model_name, "pretrained": None}  # no download
    prepared = prepare_run(to_config({**variant, **small, **here, "encoder": encoder, "num_workers": 0}))
    before = {name: value.clone() for name, value in prepared.policy.named_parameters()}
    train_run(prepared)
    after = weights(tmp_path / "run")
    still = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert [name for name in still if name.startswith("image_encoder.")] == []
    assert len(after) > 100
