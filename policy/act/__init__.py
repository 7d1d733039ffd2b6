"""`from policy.act import build_act_policy, create_temporal_dataloader`; the code lives in `bimact`."""

from bimact.data.loader import create_temporal_dataloader
from bimact.policy.act import ActPolicy, build_act_policy

__all__ = ["ActPolicy", "build_act_policy", "create_temporal_dataloader"]
