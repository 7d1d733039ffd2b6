"""Weights of policies however they were saved: found, or one sentence that says what the file holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_policies import beside_an_optimizer, lerobot_weights, original_weights, small_policy
from torch import Tensor

from bimact.errors import UserError
from bimact.policy.weights import BIMACT, LEROBOT, ORIGINAL, PolicyWeights, read_policy_weights

POLICY = small_policy()
WEIGHTS: dict[str, dict[str, Tensor]] = {
    BIMACT.name: dict(POLICY.state_dict()),
    LEROBOT.name: lerobot_weights(POLICY),
    ORIGINAL.name: original_weights(POLICY, 2),
}


def read(tmp_path: Path, content: Any) -> PolicyWeights:
    torch.save(content, tmp_path / "policy.ckpt")
    return read_policy_weights(tmp_path / "policy.ckpt")


def says(tmp_path: Path, content: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "policy.ckpt")) and message.isprintable()
    return message.removeprefix(f"{tmp_path / 'policy.ckpt'} ")


def renamed(weights: Mapping[str, Tensor], prefix: str, within: str = "") -> dict[str, Tensor]:
    return {prefix + (name.replace("model.", f"model.{within}", 1)): value for name, value in weights.items()}


FORMS = [
    *(
        ("", ""),
        ("module.", ""),
        ("module._orig_mod.", ""),
        ("policy.", ""),
        ("model.", ""),
        ("nets.policy.module.", ""),
    ),
    *(("", "module."), ("", "_orig_mod."), ("_fsdp_wrapped_module.", "_orig_mod.module.")),
]


@pytest.mark.parametrize("of", WEIGHTS)
@pytest.mark.parametrize("keys", [(), ("nets",), ("model_state_dict",), ("model", "nets"), ("state", "act")])
@pytest.mark.parametrize(("prefix", "within"), FORMS)
def test_weights_are_found(tmp_path: Path, of: str, keys: tuple[str, ...], prefix: str, within: str) -> None:
    names = [
        "queries.weight",
        "action_head.bias",
        "decoder_pos_embed.weight",
        "query_embed.weight",
        "action_head.weight",
    ]
    weights = {name: value for name, value in WEIGHTS[of].items() if name.removeprefix("model.") in names}
    content: Any = renamed(weights, prefix, within)
    for key in reversed(keys):
        content = beside_an_optimizer(key, content)
    found = read(tmp_path, content)
    assert found.software.name == of and found.tensors.keys() == weights.keys() and found.notes == ()
    assert all(torch.equal(found.tensors[name], value) for name, value in weights.items())


@pytest.mark.parametrize("of", [LEROBOT.name, ORIGINAL.name])
def test_a_network_without_its_policy(tmp_path: Path, of: str) -> None:
    """As `policy.model.state_dict()`."""
    network = {name.removeprefix("model."): value for name, value in WEIGHTS[of].items()}
    for prefix in ("", "module.", "net."):
        found = read(tmp_path, renamed(network, prefix))
        assert found.software.name == of
        assert found.tensors.keys() == {"model." + name for name in network}


def test_the_rest_of_a_training_is_left_out_and_named(tmp_path: Path) -> None:
    weights = {**renamed(WEIGHTS[ORIGINAL.name], "policy."), "metric.sum": torch.ones(1), "other.x": torch.ones(1)}
    found = read(tmp_path, {"state_dict": weights})
    assert found.tensors.keys() == WEIGHTS[ORIGINAL.name].keys()
    assert found.notes == ("tensors that are not the policy's are left out: 'metric.sum', 'other.x'",)


RAW = {"queries.weight": torch.zeros(2), "bn.running_mean": torch.zeros(1)}
AVERAGE = {"queries.weight": torch.ones(2)}
AVERAGES: dict[str, Any] = {
    "beside": {"model": RAW, "ema": AVERAGE},
    "timm": {"state_dict": RAW, "state_dict_ema": AVERAGE},
    "detr": {"model": RAW, "model_ema": {"module." + name: value for name, value in AVERAGE.items()}},
    "shadow": {"model": RAW, "ema": {"decay": 0.99, "num_updates": 3, "shadow": AVERAGE}},
    "averaged model": {"net": RAW, "averaged_model": {"n_averaged": torch.tensor(3), **renamed(AVERAGE, "module.")}},
    "one dictionary": {"state_dict": {**RAW, **renamed(AVERAGE, "ema_model.")}},
    "ema_pytorch": {"initted": torch.ones(1), "step": torch.ones(1), **RAW, **renamed(AVERAGE, "ema_model.")},
}


@pytest.mark.parametrize("form", AVERAGES)
def test_averaged_weights_are_taken_with_the_running_statistics_of_the_others(tmp_path: Path, form: str) -> None:
    found = read(tmp_path, AVERAGES[form])
    assert {name: value.tolist() for name, value in found.tensors.items()} == {
        "queries.weight": [1, 1],
        "bn.running_mean": [0],
    }
    [note] = found.notes
    places = re.fullmatch(r"the averaged weights are taken \('(.+)'\), not those beside them \('(.+)'\)", note)
    assert places and places[1] != places[2]


def test_averages_alone_and_averages_that_cannot_be_taken(tmp_path: Path) -> None:
    found = read(tmp_path, {"ema": {"n_averaged": torch.tensor(3), **renamed(RAW, "module.")}})
    assert found.tensors.keys() == RAW.keys() and found.notes == ()
    found = read(tmp_path, {"model": RAW, "ema": {"decay": 0.99, "shadow_params": [torch.ones(2)]}})
    assert found.tensors["queries.weight"].tolist() == [0, 0]
    assert found.notes == ("the averaged weights ('ema') are left out: they have no names",)
    found = read(tmp_path, {"model": RAW, "ema": {**AVERAGE, "x": torch.ones(1)}})
    assert found.tensors["queries.weight"].tolist() == [0, 0]
    assert found.notes == ("the averaged weights ('ema') are left out: they are of another network",)


def test_one_of_several_policies(tmp_path: Path) -> None:
    assert says(tmp_path, {"student": dict(RAW), "teacher": dict(RAW)}) == (
        "holds several policies ('student', 'teacher'): save the one that you want alone, by "
        "torch.save(content[KEY], FILE)"
    )
    assert "several policies ('left', 'right')" in says(tmp_path, renamed(RAW, "left.") | renamed(RAW, "right."))
    found = read(tmp_path, {"model": RAW, "critic": {"layer.weight": torch.ones(9)}})
    assert found.tensors.keys() == RAW.keys() and found.notes == ()
    found = read(tmp_path, {"model": RAW, "target": {name: value + 5 for name, value in RAW.items()}})
    assert found.tensors["queries.weight"].tolist() == [0, 0]
    assert found.notes == ("the policy under 'model' is taken, not 'target'",)


def test_what_is_no_policy_of_act_is_told(tmp_path: Path) -> None:
    unet = {f"policy.noise_pred_net.{number}.weight": torch.ones(1) for number in range(5)}
    assert says(tmp_path, {"nets": unet}) == (
        "holds no policy of ACT: its tensors are named 'policy.noise_pred_net.0.weight', "
        "'policy.noise_pred_net.1.weight', 'policy.noise_pred_net.2.weight' and 2 more, as those of a diffusion "
        "policy, and none is 'queries.weight' (bimact), 'model.decoder_pos_embed.weight' (LeRobot's ACT) or "
        "'model.query_embed.weight' (the original ACT)"
    )
    assert "named 'x', and none is 'queries.weight'" in says(tmp_path, {"x": torch.ones(1)})
    assert says(tmp_path, {}) == "holds no policy of ACT: it is an empty dictionary"
    assert "it has no tensors with names, only 'nets', 'epoch'" in says(tmp_path, {"nets": {}, "epoch": 3})
    assert "it holds no state dict but a list" in says(tmp_path, [torch.ones(1)])
    assert "it holds no state dict but a Tensor" in says(tmp_path, torch.ones(1))
    assert "only '0'" in says(tmp_path, {0: torch.ones(1)})
    assert r"named '\x1b[2J'" in says(tmp_path, {"\x1b[2J": torch.ones(1)})
    assert "holds 'queries.weight' twice" in says(tmp_path, {**RAW, **renamed(RAW, "module.")})
