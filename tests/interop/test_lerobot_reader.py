"""LeRobot policies in the layouts of 2024 to 2026: the same actions, and one sentence where that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_policies import (
    SIZE,
    beside_an_optimizer,
    chunk_of,
    lerobot_config,
    lerobot_config_of_2024,
    lerobot_weights,
    observation,
    small_policy,
    statistics_of,
    taken_back,
    write_json,
    write_lerobot_with_buffers,
    write_lerobot_with_processors,
    write_pointer,
    write_shards,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bimact.encoder.base import IMAGENET_MEAN
from bimact.errors import UserError
from bimact.interop.lerobot_reader import lerobot_folder, read_lerobot
from bimact.policy.act import ActPolicy

LAYOUTS = {
    "2024": (lerobot_config_of_2024, write_lerobot_with_buffers),
    "early 2025": (lerobot_config, write_lerobot_with_buffers),
    "late 2025": (lerobot_config, write_lerobot_with_processors),
}
OWN_IMAGES = {
    "mean": torch.tensor([0.2, 0.3, 0.4]),
    "std": torch.tensor([0.11, 0.12, 0.13]),
    "min": torch.tensor([0.0, 0.1, 0.2]),
    "max": torch.tensor([0.7, 0.8, 0.9]),
}


@pytest.fixture(scope="module")
def policy() -> ActPolicy:
    return small_policy()


def modes_of(mode: str) -> dict[str, str]:
    return {"VISUAL": mode, "STATE": mode, "ACTION": mode}


def write(folder: Path, policy: ActPolicy, layout: str = "late 2025", mode: str = "MEAN_STD", **changes: Any) -> Path:
    make_config, write_folder = LAYOUTS[layout]
    statistics = statistics_of(policy)
    return write_folder(folder, lerobot_weights(policy), make_config(policy, modes_of(mode), **changes), statistics)


CASES = [(layout, mode) for layout in LAYOUTS for mode in ("MEAN_STD", "MIN_MAX", "IDENTITY")]
CASES += [("late 2025", "QUANTILES"), ("late 2025", "QUANTILE10")]


@pytest.mark.parametrize(("layout", "mode"), CASES)
def test_predicts_the_same_actions(tmp_path: Path, layout: str, mode: str) -> None:
    seen = small_policy(pre_norm=mode == "MIN_MAX", use_vae=mode != "QUANTILES")
    mean, std = {"MEAN_STD": (OWN_IMAGES["mean"], OWN_IMAGES["std"]), "IDENTITY": (torch.zeros(3), torch.ones(3))}.get(
        mode, ((OWN_IMAGES["min"] + OWN_IMAGES["max"]) / 2, (OWN_IMAGES["max"] - OWN_IMAGES["min"]) / 2)
    )
    seen.image_encoder.mean.copy_(255 * mean.view(3, 1, 1))
    seen.image_encoder.std.copy_(255 * std.view(3, 1, 1))
    bounds = {"q01": "min", "q10": "min", "q90": "max", "q99": "max"}
    statistics = statistics_of(seen, {**OWN_IMAGES, **{name: OWN_IMAGES[of] for name, of in bounds.items()}})
    make_config, write_folder = LAYOUTS[layout]
    write_folder(tmp_path, lerobot_weights(seen), make_config(seen, modes_of(mode)), statistics)
    converted = read_lerobot(tmp_path)
    assert converted.origin == f"LeRobot policy in the layout of {layout}"

    obs = observation(seen)
    if mode not in ("MEAN_STD", "IDENTITY"):
        obs["state"][..., 0] = -1  # what the one value of a range without width becomes
    expected = taken_back(chunk_of(seen, obs), statistics["action"], mode)
    obs["state"] = taken_back(obs["state"], statistics["observation.state"], mode).float()
    found = chunk_of(converted.policy, obs)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=0)
    assert (found.amax(dim=1) - found.amin(dim=1)).amax() > 1e-2  # the chunk says something
    for name in ("state", "image_top", "image_left"):  # that depends on all that is seen
        other = {**obs, name: obs[name] + 1}
        assert (chunk_of(converted.policy, other) - found).abs().max() > 1e-4


def test_what_is_known_of_acting_and_training_is_taken_over(tmp_path: Path, policy: ActPolicy) -> None:
    write(tmp_path / "a", policy, n_action_steps=3)
    config = read_lerobot(tmp_path / "a").policy.config
    assert (config.execute_steps, config.temporal_ensemble) == (3, False)
    assert (config.cameras, config.image_size, config.state_dim, config.action_dim) == (["top", "left"], [*SIZE], 6, 4)
    assert (config.nheads, config.dropout, config.kl_weight) == (4, 0.2, 20)
    assert (config.lr, config.lr_backbone, config.weight_decay) == (3e-5, 2e-5, 2e-4)
    assert (config.encoder.model_name, config.encoder.freeze, config.encoder.image_mean) == ("resnet18", False, None)
    write(tmp_path / "b", policy, n_action_steps=1, temporal_ensemble_coeff=0.05)
    config = read_lerobot(tmp_path / "b").policy.config
    assert (config.execute_steps, config.temporal_ensemble, config.ensemble_coefficient) == (None, True, 0.05)
    write(tmp_path / "c", policy, "2024", temporal_ensemble_momentum=0.9, n_action_steps=1)
    [note] = [note for note in read_lerobot(tmp_path / "c").notes if "momentum" in note]
    assert "left out" in note


def test_names_of_older_and_compiled_policies(tmp_path: Path, policy: ActPolicy) -> None:
    weights = lerobot_weights(policy)
    weights["model.encoder_robot_and_latent_pos_embed.weight"] = weights.pop(
        "model.encoder_1d_feature_pos_embed.weight"
    )
    weights = {name.replace("model.", "model._orig_mod."): value for name, value in weights.items()}
    config = lerobot_config(policy, modes_of("IDENTITY"))
    write_lerobot_with_buffers(tmp_path, weights, config, statistics_of(policy))
    policy.image_encoder.mean.zero_(), policy.image_encoder.std.fill_(255)
    try:
        obs = observation(policy)
        torch.testing.assert_close(chunk_of(read_lerobot(tmp_path).policy, obs), chunk_of(policy, obs))
    finally:
        policy.image_encoder.mean.copy_(255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        policy.image_encoder.std.copy_(255 * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))


def test_cameras_have_the_names_that_the_robot_gives_them(tmp_path: Path, policy: ActPolicy) -> None:
    config = lerobot_config(policy)
    rename = {"observation.images.cam_high": "observation.images.top"}
    write_lerobot_with_processors(tmp_path, lerobot_weights(policy), config, statistics_of(policy), rename)
    assert read_lerobot(tmp_path).policy.cameras == ("cam_high", "left")
    assert read_lerobot(tmp_path, ["a", "b"]).policy.cameras == ("a", "b")
    with pytest.raises(UserError, match=r"sees 2 cameras \(.*top, .*left\), and --cameras names 1"):
        read_lerobot(tmp_path, ["a"])
    with pytest.raises(UserError, match="the same name"):
        read_lerobot(tmp_path, ["a", "a"])
    with pytest.raises(UserError, match=r"'\\x1b\[2J' is not a valid camera name"):
        read_lerobot(tmp_path, ["a", "\x1b[2J"])


def test_folders_of_a_training(tmp_path: Path) -> None:
    assert lerobot_folder(tmp_path) is None
    for place in ("checkpoints/last/pretrained_model", "pretrained_model", "."):
        write_json(tmp_path / place / "config.json", {})
        assert lerobot_folder(tmp_path) == (tmp_path / place, [])


def test_a_training_without_the_link_to_its_last_checkpoint(tmp_path: Path) -> None:
    for name in ("000100", "000090", "001000", "002000"):
        policy = tmp_path / "checkpoints" / name / "pretrained_model"
        write_json(policy / "config.json", {})
        if name != "002000":  # which was interrupted
            (policy / "model.safetensors").touch()
    (tmp_path / "checkpoints" / "last").write_text("002000")  # what some copies make of a link
    for place in (tmp_path, tmp_path / "checkpoints"):
        folder, notes = lerobot_folder(place) or (Path(), [])
        assert folder == tmp_path / "checkpoints" / "001000" / "pretrained_model"
        assert notes == ["the checkpoint 001000 is taken, the highest of 3; give another by its folder"]
    assert lerobot_folder(tmp_path / "checkpoints" / "000090") == (
        tmp_path / "checkpoints" / "000090" / "pretrained_model",
        [],
    )


@pytest.mark.parametrize("layout", ["early 2025", "late 2025"])
@pytest.mark.parametrize("form", ["sharded", "bin", "sharded bin", "module", "nested", "averaged", "bare"])
def test_weights_that_were_saved_in_other_ways(tmp_path: Path, policy: ActPolicy, layout: str, form: str) -> None:
    write(tmp_path, policy, layout)
    file = tmp_path / "model.safetensors"
    weights, expected = load_file(file), read_lerobot(tmp_path).policy
    notes = read_lerobot(tmp_path).notes
    file.unlink()
    if form.startswith("sharded"):
        write_shards(tmp_path, weights, *(("pytorch_model", "bin") if form.endswith("bin") else ()))
    elif form == "bin":
        torch.save(weights, tmp_path / "pytorch_model.bin")
    elif form == "module":
        save_file({f"module._orig_mod.{name}": value for name, value in weights.items()}, file)
    elif form == "nested":
        torch.save(beside_an_optimizer("policy", weights), file)
    elif form == "averaged":
        raw = {name: value + 1 if value.is_floating_point() else value for name, value in weights.items()}
        torch.save({"policy": raw, "ema": weights}, file)
        notes = ("the averaged weights are taken ('ema'), not those beside them ('policy')", *notes)
    elif layout == "late 2025":  # where no statistics lie among the weights
        save_file({name.removeprefix("model."): value for name, value in weights.items()}, file)
    else:
        return
    converted = read_lerobot(tmp_path)
    assert converted.notes == notes
    obs = observation(expected)
    torch.testing.assert_close(chunk_of(converted.policy, obs), chunk_of(expected, obs), atol=0, rtol=0)


def test_pointers_of_git_lfs(tmp_path: Path, policy: ActPolicy) -> None:
    for name in ("config.json", "model.safetensors", STATISTICS):
        write(tmp_path, policy)
        write_pointer(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} is a git-lfs pointer, .* `git lfs pull`"):
            read_lerobot(tmp_path)


def test_actions_that_never_changed_are_named(tmp_path: Path, policy: ActPolicy) -> None:
    write(tmp_path, policy, mode="MIN_MAX", normalization_mapping={**modes_of("MEAN_STD"), "ACTION": "MIN_MAX"})
    assert any(note.startswith("action 0 never changed") for note in read_lerobot(tmp_path).notes)


# What cannot be ------------------------------------------------------------------------------------


def change_file(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        write_json(folder / name, {**json.loads((folder / name).read_text()), **changes})

    return change


def change_steps(name: str, number: int, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        content["steps"][number] |= changes
        write_json(folder / name, content)

    return change


def change_tensors(name: str, change_them: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        change_them(tensors)
        save_file(tensors, folder / name)

    return change


BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"
STATISTICS = "policy_preprocessor_step_3_normalizer_processor.safetensors"
TOP, LEFT = "observation.images.top", "observation.images.left"
ENVIRONMENT = {"observation.environment_state": {"type": "ENV", "shape": [3]}}
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another policy": (change_file("config.json", type="diffusion"), "of the type 'diffusion'"),
    "several observations": (change_file("config.json", n_obs_steps=2), "n_obs_steps"),
    "dilation": (change_file("config.json", replace_final_stride_with_dilation=True), "dilation"),
    "backbone": (change_file("config.json", vision_backbone="resnet101"), "backbone is 'resnet101'"),
    "activation": (change_file("config.json", feedforward_activation="gelu"), "activation is 'gelu'"),
    "environment": (
        change_file("config.json", input_features=ENVIRONMENT),
        "environment's state; .*no proprio.*no camera",
    ),
    "foreign step": (change_steps(BEFORE, 1, registry_name="delta_actions"), "the step 'delta_actions'"),
    "foreign class": (change_steps(AFTER, 1, registry_name=None, **{"class": "os.\x1bx"}), r"the step 'os\.\\x1bx'"),
    "two normalizers": (change_steps(BEFORE, 1, registry_name="normalizer_processor"), "normalises 2 times"),
    "other network": (change_file("config.json", chunk_size=8), r"chunk_size is 7, not 8"),
    "other heads": (change_file("config.json", n_heads=5), "multiple of nheads"),
    "unknown mode": (change_file("config.json", normalization_mapping={"STATE": "MAX_ABS"}), "normalises by 'MAX_ABS'"),
    "wrong type": (
        change_file("config.json", chunk_size="many"),
        "'chunk_size' is 'many', it has to be a whole number",
    ),
    "wrong shape": (change_file("config.json", output_features={"action": {"shape": [-1]}}), r"the shape \[-1\]"),
    "no features": (change_file("config.json", input_features=3), "'input_features' is 3, it has to be an object"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "is not readable JSON"),
    "deep JSON": (lambda folder: (folder / "config.json").write_text("[" * 10**6), "is not readable JSON"),
    "no object": (lambda folder: (folder / "config.json").write_text("[]"), "holds no JSON object"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "cut weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x08" + bytes(20)),
        "not a readable safetens",
    ),
    "no postprocessor": (lambda folder: (folder / AFTER).unlink(), f"{AFTER} is missing"),
    "no statistics": (lambda folder: (folder / STATISTICS).unlink(), f"{STATISTICS} is missing"),
    "file elsewhere": (change_steps(BEFORE, 3, state_file="../x.safetensors"), "not a file of its folder"),
    "missing name": (change_tensors("model.safetensors", lambda t: t.pop("model.action_head.weight")), "not all"),
    "other names": (
        change_tensors("model.safetensors", lambda t: t.pop("model.decoder_pos_embed.weight")),
        "holds no policy of ACT: its tensors are named 'model",
    ),
    "expanded": (
        lambda folder: torch.save({f"{TOP}.mean": torch.zeros(1).expand(10**12)}, folder / STATISTICS),
        "has no 'mean' of observation.images.top in 3 finite numbers",
    ),
    "unknown name": (
        change_tensors("model.safetensors", lambda t: t.update({"model.x": torch.ones(1)})),
        "'model.x' is no",
    ),
    "other shape": (
        change_tensors("model.safetensors", lambda t: t.update({"model.action_head.bias": torch.zeros(3)})),
        "does not fit the network: .*action_head.bias",
    ),
    "infinite": (
        change_tensors(STATISTICS, lambda t: t["observation.state.mean"].fill_(torch.inf)),
        "in 6 finite numbers",
    ),
    "too few": (change_tensors(STATISTICS, lambda t: t.update({f"{TOP}.std": torch.ones(2)})), "in 3 finite numbers"),
    "not there": (
        change_tensors(STATISTICS, lambda t: t.pop("observation.state.std")),
        "has no 'std' of observation.state",
    ),
    "cameras differ": (
        change_tensors(STATISTICS, lambda t: t[f"{LEFT}.mean"].add_(0.1)),
        "normalises each camera differently",
    ),
    "black": (
        change_tensors(STATISTICS, lambda t: (t[f"{TOP}.std"].zero_(), t[f"{LEFT}.std"].zero_())),
        "constant images",
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, policy: ActPolicy) -> Path:
    return write(tmp_path_factory.mktemp("sound"), policy)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(tmp_path: Path, sound: Path, name: str) -> None:
    for path in sound.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change, sentence = FAULTS[name]
    change(tmp_path)
    with pytest.raises(UserError, match=sentence) as caught:
        read_lerobot(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message and "\n" not in message and message.isprintable()


def test_a_policy_without_statistics_takes_things_as_they_are_and_says_so(tmp_path: Path, policy: ActPolicy) -> None:
    write(tmp_path, policy)
    change_steps(BEFORE, 3, state_file=None)(tmp_path)
    change_steps(AFTER, 0, state_file=None)(tmp_path)
    converted = read_lerobot(tmp_path)
    assert sum("has no statistics of" in note for note in converted.notes) == 4
    assert converted.policy.config.encoder.image_std == [1, 1, 1]
    assert converted.policy.action_normalizer.std.tolist() == [1] * 4


def test_a_width_that_weights_announce_takes_no_memory(tmp_path: Path, policy: ActPolicy) -> None:
    """A row of two million numbers fits into any file; a network of that width into no machine."""
    weights = lerobot_weights(policy)
    weights["model.decoder_pos_embed.weight"] = torch.zeros(7, 2_000_000, dtype=torch.uint8)
    config = lerobot_config(policy, dim_model=2_000_000)
    write_lerobot_with_processors(tmp_path, weights, config, statistics_of(policy))
    with pytest.raises(UserError, match="does not fit the network"):
        read_lerobot(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_is_refused_or_passed(tmp_path: Path, policy: ActPolicy, data: st.DataObject) -> None:
    """Without weights the end is a sentence in any case."""
    of_2024 = data.draw(st.booleans())
    config = lerobot_config_of_2024(policy, modes_of("MIN_MAX")) if of_2024 else lerobot_config(policy)
    place: Any = config
    for _ in range(data.draw(st.integers(0, 2))):
        inner = [value for value in place.values() if isinstance(value, dict) and value]
        place = data.draw(st.sampled_from(inner)) if inner else place
    place[data.draw(st.sampled_from(sorted(place)) | st.text(max_size=9))] = data.draw(JSON)
    write_json(tmp_path / "config.json", config)
    with pytest.raises(UserError) as caught:
        read_lerobot(tmp_path)
    assert str(caught.value).isprintable()
