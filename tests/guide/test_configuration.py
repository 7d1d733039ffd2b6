"""Each key that the guide shows changes what it should: shapes, counts of parameters, what training and acting do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset
from omegaconf import OmegaConf
from policies import (
    LENGTHS,
    count,
    expected_count,
    guides_policy,
    make_batch,
    make_policy,
    predict,
    step_records,
    train,
    weights,
)
from torch import Tensor

from bimact.cli import main
from bimact.config import save_config
from bimact.data.loader import create_temporal_dataloader
from bimact.data.windows import split_episodes
from bimact.policy.act import ActOutput, ActPolicy, act_losses, build_act_policy
from bimact.policy.ensembling import TemporalEnsemble
from bimact.run_directory import read_metrics

# how settings are given


def test_dataset_dir_comes_from_the_line_the_file_or_the_environment_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACT_DATASET_DIR", str(tmp_path / "of-environment"))
    (tmp_path / "silent.yaml").write_text('mixed_precision: "no"\n')
    (tmp_path / "mine.yaml").write_text(f'mixed_precision: "no"\ndataset_dir: {tmp_path}/of-file\n')
    line = ["--dataset_dir", str(tmp_path / "of-line")]
    for config, more, expected in (("silent", [], "environment"), ("mine", [], "file"), ("mine", line, "line")):
        common = ["--output_dir", str(tmp_path / "run"), "--device", "cpu"]
        with pytest.raises(SystemExit) as end:
            main(["train", "--config", str(tmp_path / f"{config}.yaml"), *common, *more])
        printed = capsys.readouterr()
        assert end.value.code == 2 and f"{tmp_path}/of-{expected}" in printed.err
        assert f"Dataset: {tmp_path}/of-{expected}\n" in printed.out


# model architecture


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["hidden_dim=256", "num_encoder_layers=2", "num_decoder_layers=4"],  # faster training
        ["chunk_size=100"],  # a longer horizon
        ["temporal_context=5"],  # more context
        ["batch_size=4", "hidden_dim=256"],  # less memory
        ["latent_dim=8", "nheads=4"],
        ["encoder.model_name=RN50"],
    ],
    ids=" ".join,
)
def test_the_guides_policy_and_its_variants_have_the_sizes_that_their_keys_say(changes: list[str]) -> None:
    policy = guides_policy(*changes)
    config = policy.config
    assert config.batch_size == (4 if "batch_size=4" in changes else 8)
    of_encoder, width = (38_316_896, 1024) if "encoder.model_name=RN50" in changes else (87_849_216, 512)
    assert count(policy.image_encoder) == of_encoder
    assert count(policy) == expected_count(config, of_encoder, width)
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert trainable == count(policy) - of_encoder
    context = config.temporal_context
    obs = {name: torch.zeros(4, context, 3, 48, 64, dtype=torch.uint8, device="meta") for name in _images()}
    chunk, _ = policy({**obs, "state": torch.zeros(4, context, 14, device="meta")})
    assert chunk.shape == (4, config.chunk_size, 14)


def _images() -> list[str]:
    return ["image_left", "image_right"]


@pytest.mark.parametrize("chunk", [5, 100])
def test_chunk_size_is_the_number_of_actions_in_samples_and_predictions(dataset: Path, chunk: int) -> None:
    assert predict(make_policy(chunk_size=chunk)).shape == (2, chunk, 14)
    obs, actions = next(iter(create_temporal_dataloader(dataset, 2, chunk, batch_size=3, shuffle=False)))
    assert actions.shape == (3, chunk, 14) and obs["action_is_pad"].shape == (3, chunk)
    assert obs["action_is_pad"][0].sum() == max(0, chunk - LENGTHS[0])


@pytest.mark.parametrize("context", [1, 3, 5])
def test_temporal_context_is_the_number_of_observations(dataset: Path, context: int) -> None:
    obs, _ = next(iter(create_temporal_dataloader(dataset, context, 5, batch_size=3, shuffle=False)))
    assert obs["image_left"].shape == (3, context, 3, 16, 24) and obs["state"].shape == (3, context, 14)
    states = np.load(dataset / "observations.npy", mmap_mode="r")["state"]
    history = [max(0, 2 + past) for past in range(1 - context, 1)]  # of the third step
    assert np.array_equal(obs["state"][2], states[history])
    policy = make_policy(temporal_context=context, encoder={"fuse": "mean"})
    tokens: list[Tensor] = []
    policy.encoder.register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0]))
    chunk = predict(policy)
    rows, columns = policy.image_encoder.token_grid(16, 24)
    assert rows * columns == 6 and tokens[0].shape == (2, 1 + context + context * 6, 16)
    one_less = make_policy(temporal_context=context + 1, encoder={"fuse": "mean"})
    assert count(one_less) - count(policy) == 2 * 16  # a position of the state and one of the image
    obs, _ = make_batch(policy.config)
    for name in ("image_left", "state"):
        changed = obs[name].clone()
        changed[:, 0] = 7
        with torch.no_grad():
            assert not torch.equal(policy({**obs, name: changed})[0], chunk), f"the oldest {name} is not looked at"


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_nheads_splits_attention_as_torchs_own_module_does(heads: int) -> None:
    policy = make_policy(nheads=heads)
    assert count(policy) == count(make_policy())
    ours = policy.get_submodule("encoder.layers.0.self_attn")
    torchs = torch.nn.MultiheadAttention(16, heads, batch_first=True)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(ours(x, x, x), torchs(x, x, x)[0])
    assert (heads == 2) == torch.allclose(predict(policy), predict(make_policy()))


@pytest.mark.parametrize(("stack", "layers"), [("encoder", 4), ("decoder", 7)])
def test_each_layer_counts(stack: str, layers: int) -> None:
    """Down to the last one: an error of the original code left all decoder layers but the first without effect."""
    policy = make_policy(**{f"num_{stack}_layers": layers})
    whole = predict(policy)
    stacked = getattr(policy, stack).layers
    assert len(stacked) == layers
    for number, layer in enumerate(stacked):
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                if "norm" not in name:
                    parameter.zero_()
        assert not torch.allclose(predict(policy), whole), f"layer {number} of the {stack} does nothing"
        layer.load_state_dict(before)
    assert torch.equal(predict(policy), whole)


@pytest.mark.parametrize("latent", [1, 32])
def test_latent_dim_is_the_size_of_the_posterior(latent: int) -> None:
    policy = make_policy(latent_dim=latent).train()
    _, output = policy(*make_batch(policy.config))
    assert output.mu is not None and output.log_sigma2 is not None
    assert output.mu.shape == output.log_sigma2.shape == (2, latent)
    assert count(make_policy(latent_dim=latent + 1)) - count(policy) == 16 + 2 * (16 + 1)


# training hyperparameters


@pytest.mark.parametrize("size", [4, 8])
def test_batch_size_decides_the_steps_of_an_epoch(dataset: Path, tmp_path: Path, size: int) -> None:
    train(dataset, tmp_path / "run", batch_size=size, num_epochs=2, val_split=0)
    steps = [(record["epoch"], record["step"]) for record in step_records(tmp_path / "run")]
    an_epoch = math.ceil(sum(LENGTHS) / size)
    assert steps == [(1 + step // an_epoch, step + 1) for step in range(2 * an_epoch)]


def test_lr_is_the_size_of_a_step_and_is_logged(dataset: Path, tmp_path: Path) -> None:
    rates = (1e-3, 4e-3)
    for rate in rates:
        train(dataset, tmp_path / f"{rate}", lr=rate, num_steps=1, weight_decay=0)
        assert [record["lr"] for record in step_records(tmp_path / f"{rate}")] == [rate]
    one, two = (weights(tmp_path / f"{rate}") for rate in rates)
    moved = max(float((one[name] - two[name]).abs().max()) for name in one if "running" not in name)
    assert moved == pytest.approx(3e-3, rel=0.01)  # Adam's first step moves a weight by lr


def test_num_epochs_is_how_often_the_samples_are_passed(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path / "run", num_epochs=3, checkpoint_frequency=10)
    epochs = [record["epoch"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_loss" in record]
    assert epochs == [1, 2, 3]
    assert (tmp_path / "run" / "checkpoint" / "act-train-3.pth").exists()


@pytest.mark.parametrize("weight", [0.0, 1.0, 10.0])
def test_kl_weight_is_the_share_of_the_divergence_in_the_loss(dataset: Path, tmp_path: Path, weight: float) -> None:
    config = tiny_config(kl_weight=weight)
    output = ActOutput(torch.randn(2, 5, 14), torch.randn(2, 4), torch.randn(2, 4))
    losses = act_losses(output, torch.randn(2, 5, 14), torch.zeros(2, 5, dtype=torch.bool), config)
    assert losses.kl > 0 and torch.equal(losses.total, losses.action + weight * losses.kl)
    train(dataset, tmp_path / "run", kl_weight=weight, num_steps=3)
    for record in step_records(tmp_path / "run"):
        assert record["total_loss"] == pytest.approx(record["action_loss"] + weight * record["kl_divergence"], rel=1e-5)


@pytest.mark.slow
def test_a_higher_kl_weight_draws_the_posterior_to_the_prior(dataset: Path, tmp_path: Path) -> None:
    for name, weight in (("low", 0.01), ("high", 50.0)):
        train(dataset, tmp_path / name, kl_weight=weight, num_steps=80, lr=3e-3, log_frequency=20)
    low, high = (step_records(tmp_path / name)[-1]["kl_divergence"] for name in ("low", "high"))
    assert high < 0.5 * low  # seen: a fifth


@pytest.mark.parametrize(("loss", "size"), [("l1", np.abs), ("l2", np.square)])
def test_action_loss_is_that_of_a_plain_reference(dataset: Path, tmp_path: Path, loss: str, size: Any) -> None:
    """val_loss, from the saved weights: over the real actions of the held-out episode, normalised, with latent 0."""
    run = tmp_path / "run"
    train(dataset, run, action_loss=loss, num_epochs=1, use_vae=loss == "l1")
    policy = build_act_policy(OmegaConf.load(run / "config.yaml"))
    policy.load_state_dict(weights(run))
    policy.eval()
    _, held_out = split_episodes(LENGTHS, 0.25, seed=0)
    first = sum(LENGTHS[: held_out[0]])
    actions = np.load(dataset / "actions.npy")
    training = np.delete(actions, range(first, first + LENGTHS[held_out[0]]), axis=0).astype(np.float64)
    mean, deviation = training.mean(axis=0), training.std(axis=0)
    errors = []
    loader = create_temporal_dataloader(dataset, 2, 5, batch_size=1, shuffle=False)
    for row, (obs, chunk) in enumerate(loader):
        if first <= row < first + LENGTHS[held_out[0]]:
            with torch.no_grad():
                error = (policy(obs)[0] - chunk)[0].numpy() / deviation
            errors += [size(step) for step, is_pad in zip(error, obs["action_is_pad"][0]) if not is_pad]
    logged = [r["val_loss"] for r in read_metrics(run / "metrics.jsonl") if "val_loss" in r]
    assert logged == [pytest.approx(np.mean(errors), rel=1e-4)]
    assert np.abs(mean).max() > 0.01  # so that the statistics are not those of numbers normalised already


# checkpoints and validation


@pytest.mark.parametrize(("frequency", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (10, [5])])
def test_checkpoint_frequency_decides_which_epochs_are_kept(
    tmp_path: Path, frequency: int, expected: list[int]
) -> None:
    dataset = write_dataset(tmp_path / "dataset", [4, 4])
    train(dataset, tmp_path / "run", num_epochs=5, checkpoint_frequency=frequency, val_split=0)
    numbered = [f"act-train-{epoch}.pth" for epoch in expected]
    found = {path.name for path in (tmp_path / "run" / "checkpoint").glob("*.pth")}
    assert found == {*numbered, "act-train-last.pth", "act-train-best.pth"}


@pytest.mark.parametrize(("share", "held_out"), [(0.0, 0), (0.1, 1), (0.25, 1), (0.5, 2), (0.9, 3)])
def test_val_split_holds_whole_episodes_out(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, held_out: int
) -> None:
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    states = np.load(dataset / "observations.npy", mmap_mode="r")["state"][:, 0].tolist()
    assert len(set(states)) == len(states)  # a state tells its step
    forward = ActPolicy.forward

    def watched(self: ActPolicy, obs: dict[str, Tensor], *rest: Any) -> Any:
        seen[self.training] |= {states.index(value) for value in obs["state"][..., 0].flatten().tolist()}
        return forward(self, obs, *rest)

    monkeypatch.setattr(ActPolicy, "forward", watched)
    train(dataset, tmp_path / "run", val_split=share, num_epochs=1)
    episode_of = np.repeat(np.arange(4), LENGTHS)
    trained_on, shown = (set(episode_of[list(steps)].tolist()) for steps in (seen[True], seen[False]))
    assert len(trained_on) == 4 - held_out
    assert seen[True] == {step for step, episode in enumerate(episode_of) if episode in trained_on}
    validated = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_loss" in record]
    assert bool(validated) == (held_out > 0)
    assert shown == {0, 1, 2, 3} - trained_on or not held_out


# temporal ensembling


@pytest.mark.parametrize("window", [None, 1, 3, 10])
def test_ensemble_window_is_how_many_chunks_are_averaged(window: int | None) -> None:
    chunks = torch.randn(30, 1, 12, 14, dtype=torch.float64)  # predicted at steps 0 to 29
    ensemble = TemporalEnsemble(12, window=window)
    for step in range(30):
        said = [chunks[at, 0, step - at] for at in range(step + 1) if step - at < 12][-(window or 12) :]
        shares = [math.exp(-0.01 * age) for age in range(len(said))]
        expected = sum(share * action for share, action in zip(shares, said)) / sum(shares)
        torch.testing.assert_close(ensemble.update(chunks[step])[0], expected)


def test_acting_takes_window_and_coefficient_from_the_runs_config() -> None:
    from bimact.policy.inference import Policy
    from bimact.policy.metadata import Execution

    policy = make_policy(temporal_ensemble=True, ensemble_window=3, ensemble_coefficient=0.5)
    acting = Policy(policy, Execution.of(policy.config))
    chunks: list[Tensor] = []
    for step in range(8):
        obs = make_batch(policy.config, size=1)[0]
        for camera in ("left", "right"):  # they see the same at all times
            obs[f"image_{camera}"] = obs[f"image_{camera}"][:, :1].expand(
                -1, policy.config.temporal_context, -1, -1, -1
            )
        obs["state"] = obs["state"] + step
        with torch.no_grad():
            chunks.append(policy(obs)[0][0])
        by_camera = {name: x.permute(0, 1, 3, 4, 2) if name.startswith("image_") else x for name, x in obs.items()}
        action = acting.next_actions({name: value.numpy() for name, value in by_camera.items()})
        said = [chunks[at][step - at] for at in range(max(0, step - 2), step + 1)]
        shares = [math.exp(-0.5 * age) for age in range(len(said))]
        expected = sum(share * one for share, one in zip(shares, said)) / sum(shares)
        assert action.shape == (1, 1, 14)
        torch.testing.assert_close(torch.from_numpy(action[0, 0]), expected)


@pytest.mark.slow
def test_temporal_ensemble_of_a_runs_config_is_what_the_rollouts_use(tmp_path: Path) -> None:
    """True in R/config.yaml: a prediction each step, unless the command line asks for whole chunks."""
    policy = make_policy(cameras=["top"], image_size=[16, 24], chunk_size=100, temporal_ensemble=True)
    (tmp_path / "checkpoint").mkdir()
    save_config(policy.config, tmp_path / "config.yaml")
    torch.save(policy.state_dict(), tmp_path / "checkpoint" / "act-train-best.pth")
    for options, steps in (([], 1), (["--execute_steps", "50"], 50)):
        with pytest.raises(SystemExit) as end:
            common = ["--task", "transfer_cube", "--rollouts", "1", "--device", "cpu"]
            main(["evaluate", "--run", str(tmp_path), *common, *options])
        assert end.value.code == 0
        result = json.loads((tmp_path / "evaluation.json").read_text())["rollouts"]["transfer_cube"]
        assert (result["settings"]["temporal_ensemble"], result["execute_steps"]) == (steps == 1, steps)
