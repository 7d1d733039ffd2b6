"""ACT, Action Chunking with Transformers (Zhao et al. 2023, arXiv:2304.13705, section IV and appendix C).

Letters: B batch, T observations (temporal_context), V cameras, K tokens per image, D hidden_dim, C chunk_size,
A action_dim, S state_dim, Z latent_dim, P max_delay.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bimact.config import Config, to_config
from bimact.data.normalize import Normalizer
from bimact.encoder.base import Float32Linear, build_encoder
from bimact.encoder.depth import DepthEncoder
from bimact.errors import UserError
from bimact.policy.fusion import build_fusion
from bimact.policy.transformer import (
    TransformerDecoder,
    TransformerEncoder,
    sinusoidal_positions_1d,
    sinusoidal_positions_2d,
)

Observation = dict[str, Tensor]


class ActOutput(NamedTuple):
    """The inputs of the loss besides the predicted actions.

    Attributes:
        normalized_actions: (B, C, A), zero mean and unit variance.
        mu: (B, Z) mean of the posterior; None without a posterior (evaluation mode, `use_vae: false`).
        log_sigma2: (B, Z) logarithm of its variance, or None.
        is_given: (B, C) bool, actions that were given with the observation; None: none were.
    """

    normalized_actions: Tensor
    mu: Tensor | None
    log_sigma2: Tensor | None
    is_given: Tensor | None = None


class Losses(NamedTuple):
    """Scalars: total = action + kl_weight · kl."""

    total: Tensor
    action: Tensor
    kl: Tensor


class PosteriorEncoder(nn.Module):
    """The CVAE's encoder: the posterior of the latent given the present state and the demonstrated chunk."""

    positions: Tensor

    def __init__(self, config: Config, state_dim: int, action_dim: int) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.state_proj = nn.Linear(state_dim, dim)
        self.action_proj = nn.Linear(action_dim, dim)
        self.encoder = TransformerEncoder(
            config.n_vae_encoder_layers,
            dim,
            config.nheads,
            config.dim_feedforward,
            config.dropout,
            config.pre_norm,
        )
        self.latent_proj = nn.Linear(dim, 2 * config.latent_dim)
        self.register_buffer("positions", sinusoidal_positions_1d(2 + config.chunk_size, dim)[None], persistent=False)

    def forward(self, state: Tensor, actions: Tensor, action_is_pad: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised state (B, S) and actions (B, C, A), padding (B, C) → mu and log sigma², (B, Z) each."""
        batch = len(state)
        tokens = torch.cat(
            [self.cls.expand(batch, -1, -1), self.state_proj(state)[:, None], self.action_proj(actions)],
            dim=1,
        )  # (B, 2 + C, D)
        is_pad = torch.cat([action_is_pad.new_zeros(batch, 2), action_is_pad], dim=1)
        cls = self.encoder(tokens, self.positions, is_pad, wanted=1)[:, 0]
        mu, log_sigma2 = self.latent_proj(cls).chunk(2, dim=-1)
        return mu, log_sigma2


class ActPolicy(nn.Module):
    """Observations in the robot's units → a chunk of actions in the robot's units.

    The observation encoder sees [latent, state of each of T steps, visual tokens of each of T steps]; the
    decoder's C queries become the chunk. With T = 1 and `fuse: tokens` this is the network of the paper.

    With `max_delay` the observation encoder sees P more tokens: the chunk's first actions, as far as they are given
    because they are being executed while the chunk is computed (training-time action conditioning, arXiv:2512.05964,
    there for flow matching).
    """

    relative_to: Tensor
    task_texts: Tensor  # (number of tasks, E): the frozen embeddings, of task_conditioning: text

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.state_dim is None or config.action_dim is None or config.cameras is None:
            raise UserError(
                "the policy needs state_dim, action_dim and cameras in its config: take R/config.yaml of a run, "
                "or set them"
            )
        self.config = config
        self.cameras = tuple(config.cameras)
        self.depth_cameras = frozenset(config.depth_cameras or ())
        dim, context = config.hidden_dim, config.temporal_context
        layer = (dim, config.nheads, config.dim_feedforward, config.dropout, config.pre_norm)
        self.state_normalizer = Normalizer(config.state_dim)
        self.action_normalizer = Normalizer(config.action_dim)
        self.relative_normalizer: Normalizer | None = None
        if config.action_mode == "relative":
            if config.relative_to is None:
                raise UserError("action_mode relative needs relative_to in the config: take R/config.yaml of a run")
            self.register_buffer("relative_to", torch.tensor(config.relative_to), persistent=False)
            self.relative_normalizer = Normalizer(config.chunk_size, config.action_dim)

        self.posterior = PosteriorEncoder(config, config.state_dim, config.action_dim) if config.use_vae else None
        self.latent_proj = nn.Linear(config.latent_dim, dim)
        self.state_proj = Float32Linear(config.state_dim, dim)
        self.vector_positions = nn.Embedding(1 + context, dim)  # of the latent and of T states
        if config.task_conditioning != "none":
            if not config.tasks or (config.task_conditioning == "text" and config.task_text_dim is None):
                raise UserError("task_conditioning needs the tasks in the config: take R/config.yaml of a run")
            self.task_position = nn.Parameter(torch.zeros(1, dim))
            if config.task_conditioning == "id":
                self.task_embedding = nn.Embedding(len(config.tasks), dim)
            else:
                self.register_buffer("task_texts", torch.zeros(len(config.tasks), config.task_text_dim or 0))
                self.task_proj = nn.Linear(config.task_text_dim or 0, dim)
        if self.cameras:
            self.image_encoder = build_encoder(config.encoder)
            projection = Float32Linear if config.encoder.keypoints else nn.Linear  # coordinates, or features
            self.image_proj = projection(self.image_encoder.out_dim, dim)
            if self.depth_cameras:
                if self.depth_cameras == set(self.cameras):
                    raise UserError("depth cameras need a colour camera beside them: name one more in cameras")
                self.depth_encoder = DepthEncoder(config.encoder, self.image_encoder.image_size)
                self.depth_proj = nn.Linear(self.depth_encoder.out_dim, dim)
            self.fusion = build_fusion(config.encoder.fuse, len(self.cameras), dim)
            # Which step and which camera a token comes from. Both start at zero: the paper has neither.
            self.step_positions = nn.Parameter(torch.zeros(context, dim))
            num_sources = len(self.cameras) if config.encoder.fuse == "tokens" else 1
            self.camera_positions = nn.Parameter(torch.zeros(num_sources, dim))

        if config.max_delay:
            self.given_proj = Float32Linear(config.action_dim, dim)
            self.not_given = nn.Parameter(torch.zeros(dim))
            self.given_positions = nn.Embedding(config.max_delay, dim)
        self.encoder = TransformerEncoder(config.num_encoder_layers, *layer)
        self.decoder = TransformerDecoder(config.num_decoder_layers, *layer)
        self.queries = nn.Embedding(config.chunk_size, dim)
        self.action_head = Float32Linear(dim, config.action_dim)
        self._place_positions: dict[tuple[tuple[int, int], torch.device], Tensor] = {}

    def forward(
        self, obs: Observation, actions: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, ActOutput]:
        """Predict a chunk of actions.

        Args:
            obs: `state` (B, T, S); with task_conditioning `task` (B,) int64, the task's number; and of each of the
                policy's cameras one of `image_<camera>` (B, T, 3, H, W) uint8;
                `features_<camera>` (B, T, rows, columns, C), features of the trunk of its image encoder;
                `tokens_<camera>` (B, T, rows, columns, E), tokens of the whole encoder. In training mode also
                `action_is_pad` (B, C). `reference` (B, S) is the present state that relative actions belong to, if
                `state` was changed; None: the last of `state`. With `max_delay` also `given_actions` (B, P, A) and
                `given_steps` (B,) int64 from 0 to P, the number of them that count. Other entries are ignored.
            actions: (B, C, A), the demonstrated chunk: the posterior sees it in training mode, where the
                latent is sampled. In evaluation mode it is not used and the latent is 0.
            noise: (B, Z) standard normal numbers for the latent; None: drawn here.

        Returns:
            the chunk (B, C, A) in the robot's units, which begins with the given actions, and the other inputs of
            the loss.
        """
        state = self.state_normalizer(obs["state"].float())
        mu = log_sigma2 = None
        latent = state.new_zeros(state.shape[0], self.config.latent_dim)
        if self.training and self.posterior is not None:
            if actions is None:
                raise ValueError("in training mode the CVAE needs the demonstrated actions")
            mu, log_sigma2 = self.posterior(state[:, -1], self.normalized(actions, obs), obs["action_is_pad"])
            mu, log_sigma2 = mu.float(), log_sigma2.float()
            latent = mu + (log_sigma2 / 2).exp() * (torch.randn_like(mu) if noise is None else noise)
        given = self._given_tokens(obs) if self.config.max_delay else None
        normalized = self._decode(latent, state, self._task_token(obs), self._visual_tokens(obs), given).float()
        chunk, is_given = self._in_units(normalized, obs), None
        if "given_steps" in obs:
            is_given = torch.arange(self.config.chunk_size, device=chunk.device) < obs["given_steps"][:, None]
            chunk = torch.where(is_given[..., None], self._whole_chunk(obs["given_actions"]).to(chunk), chunk)
        return chunk, ActOutput(normalized, mu, log_sigma2, is_given)

    def _whole_chunk(self, given_actions: Tensor) -> Tensor:
        """(B, P, A) → (B, C, A), with zeros."""
        return nn.functional.pad(given_actions, (0, 0, 0, self.config.chunk_size - given_actions.shape[1]))

    def _given_tokens(self, obs: Observation) -> Tensor:
        """(B, P, D): the chunk's first actions, as far as they are given."""
        batch, most = obs["state"].shape[0], self.config.max_delay
        not_given = self.not_given.expand(batch, most, -1)
        if "given_steps" not in obs:
            return not_given
        normalized = self.normalized(self._whole_chunk(obs["given_actions"]), obs)[:, :most]
        is_given = torch.arange(most, device=normalized.device) < obs["given_steps"][:, None]
        return torch.where(is_given[..., None], self.given_proj(normalized), not_given)

    def normalized(self, actions: Tensor, obs: Observation) -> Tensor:
        """Chunks (B, C, A) in the robot's units → as the network predicts them: normalised, relative if so."""
        if self.relative_normalizer is None:
            return self.action_normalizer(actions)
        return self.relative_normalizer(actions - self._base(obs))

    def _in_units(self, normalized: Tensor, obs: Observation) -> Tensor:
        """The inverse of `normalized`."""
        if self.relative_normalizer is None:
            return self.action_normalizer.inverse(normalized)
        return self.relative_normalizer.inverse(normalized) + self._base(obs)

    def _base(self, obs: Observation) -> Tensor:
        """(B, 1, A): the reference of relative actions; 0 for absolute dimensions."""
        state = (obs["reference"] if "reference" in obs else obs["state"][:, -1]).float()
        return torch.where(self.relative_to >= 0, state[:, self.relative_to], 0.0)[:, None]

    def prepare_for_inference(self) -> None:
        """Make inference faster, in ways after which the policy can no longer be trained or saved."""
        if self.cameras:
            self.image_encoder.prepare_for_inference()
            if self.depth_cameras:
                self.depth_encoder.prepare_for_inference()

    def _task_token(self, obs: Observation) -> Tensor | None:
        """(B, 1, D) of the task; None without task_conditioning."""
        if self.config.task_conditioning == "none":
            return None
        if "task" not in obs:
            raise UserError("the policy is told its task, and the observation has no 'task'")
        if self.config.task_conditioning == "id":
            return self.task_embedding(obs["task"])[:, None]
        return self.task_proj(self.task_texts[obs["task"]])[:, None]

    def _decode(
        self,
        latent: Tensor,
        state: Tensor,
        task: Tensor | None,
        visual: tuple[Tensor, Tensor] | None,
        given: Tensor | None,
    ) -> Tensor:
        """Latent (B, Z), state (B, T, S), token of the task, visual tokens and positions, given actions (B, P, D).

        Returns:
            the normalised chunk (B, C, A).
        """
        tokens = [self.latent_proj(latent)[:, None], self.state_proj(state)]
        positions = [self.vector_positions.weight[None]]
        if task is not None:
            tokens.append(task)
            positions.append(self.task_position[None])
        if visual is not None:
            tokens.append(visual[0])
            positions.append(visual[1])
        if given is not None:
            tokens.append(given)
            positions.append(self.given_positions.weight[None])
        placed = torch.cat(positions, dim=1)  # (1, M, D)
        memory = self.encoder(torch.cat(tokens, dim=1), placed)
        return self.action_head(self.decoder(self.queries.weight[None], memory, placed))

    def _visual_tokens(self, obs: Observation) -> tuple[Tensor, Tensor] | None:
        """Tokens (B, T · K', D) of all cameras and steps, oldest step first, and positions (1, T · K', D)."""
        if not self.cameras:
            return None
        encoded = self._encoded(obs)
        grids = [(features.shape[2], features.shape[3]) for features in encoded]
        batch, context = encoded[0].shape[:2]
        tokens = [
            (self.depth_proj if camera in self.depth_cameras else self.image_proj)(features.flatten(2, 3))
            for camera, features in zip(self.cameras, encoded)
        ]  # of each camera (B, T, K, D)
        if self.fusion is not None:
            if len(set(grids)) > 1:
                raise UserError(
                    f"encoder.fuse '{self.config.encoder.fuse}' fuses tokens per location, but the cameras' "
                    "images have different sizes: set encoder.image_size, or fuse: tokens"
                )
            stacked = torch.stack(tokens, dim=2).flatten(0, 1)  # (B·T, V, K, D)
            tokens = [self.fusion(stacked).unflatten(0, (batch, context))]
            grids = grids[:1]
        places = torch.cat(
            [self._grid_positions(grid) + camera for grid, camera in zip(grids, self.camera_positions)]
        )  # (K', D)
        positions = (self.step_positions[:, None] + places).flatten(0, 1)[None]
        return torch.cat(tokens, dim=2).flatten(1, 2), positions

    def _encoded(self, obs: Observation) -> list[Tensor]:
        """The encoder's tokens of each camera (B, T, rows, columns, E)."""
        missing = [camera for camera in self.cameras if not {f"tokens_{camera}", f"features_{camera}"} & obs.keys()]
        made = self.encode_images({camera: self._images(obs, camera) for camera in missing})
        return [made[camera] if camera in made else self._given(obs, camera) for camera in self.cameras]

    def _given(self, obs: Observation, camera: str) -> Tensor:
        """A camera's tokens, from its trunk features if these are given."""
        if f"tokens_{camera}" in obs:
            return obs[f"tokens_{camera}"]
        features = obs[f"features_{camera}"]
        return self.image_encoder.head(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    def _images(self, obs: Observation, camera: str) -> Tensor:
        name = f"image_{camera}"
        if name not in obs:
            raise UserError(f"the policy was trained with '{name}', which the observation does not have")
        return obs[name]

    def encode_images(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of each camera (B, T, 3, H, W) → (B, T, rows, columns, E).

        Cameras of one size go through their encoder as one batch.
        """
        found: dict[str, Tensor] = {}
        of_depth = [camera for camera in images if camera in self.depth_cameras]
        of_color = [camera for camera in images if camera not in self.depth_cameras]
        for encoder, cameras in ((self.image_encoder, of_color), (getattr(self, "depth_encoder", None), of_depth)):
            if not cameras:
                continue
            assert encoder is not None
            flat = [images[camera].flatten(0, 1) for camera in cameras]
            if len({image.shape[-2:] for image in flat}) == 1:
                sizes = [image.shape[0] for image in flat]
                encoded = list(encoder.token_map(torch.cat(flat)).split(sizes))
            else:
                encoded = [encoder.token_map(image) for image in flat]
            if encoder is not self.image_encoder and self.fusion is not None:  # which is per location
                height, width = images[cameras[0]].shape[-2:]
                grid = self.image_encoder.token_grid(height, width)
                encoded = [
                    nn.functional.adaptive_avg_pool2d(tokens.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)
                    for tokens in encoded
                ]
            for camera, tokens in zip(cameras, encoded):
                found[camera] = tokens.unflatten(0, images[camera].shape[:2])
        return found

    def _grid_positions(self, grid: tuple[int, int]) -> Tensor:
        """(K, D) positions of a grid of tokens, computed once for each grid."""
        device = self.queries.weight.device
        if (grid, device) not in self._place_positions:
            positions = sinusoidal_positions_2d(*grid, self.config.hidden_dim)
            self._place_positions[grid, device] = positions.to(device)
        return self._place_positions[grid, device]


def act_losses(policy_output: ActOutput, normalized_actions: Tensor, is_pad: Tensor, config: Config) -> Losses:
    """The paper's loss: reconstruction of the real actions, and the KL divergence to the prior.

    Args:
        policy_output: of `ActPolicy.forward`.
        normalized_actions: (B, C, A), the demonstrated chunk.
        is_pad: (B, C) bool, steps after the episode's end: they do not count. Given actions count as right.
        config: for `action_loss` and `kl_weight`.

    Returns:
        action: mean over all numbers of real steps; kl: summed over latent dimensions, mean over the batch.
    """
    error = policy_output.normalized_actions - normalized_actions
    error = error.abs() if config.action_loss == "l1" else error.square()
    if policy_output.is_given is not None:
        error = error.masked_fill(policy_output.is_given.unsqueeze(-1), 0)
    is_real = (~is_pad).unsqueeze(-1).to(error.dtype)
    action = (error * is_real).sum() / (is_real.sum() * error.shape[-1])
    kl = action.new_zeros(())
    if policy_output.mu is not None and policy_output.log_sigma2 is not None:
        mu, log_sigma2 = policy_output.mu, policy_output.log_sigma2
        kl = 0.5 * (mu.square() + log_sigma2.exp() - log_sigma2 - 1).sum(dim=-1).mean()
    return Losses(action + config.kl_weight * kl, action, kl)


def build_act_policy(config: Any) -> ActPolicy:
    """Make the policy that a config describes: a `Config`, a mapping, or a node of `OmegaConf.load`.

    The config has to name state_dim, action_dim and cameras; `R/config.yaml` of a run does.

    Raises:
        UserError: for a faulty config or encoder weights that cannot be had.
    """
    return ActPolicy(to_config(config))
