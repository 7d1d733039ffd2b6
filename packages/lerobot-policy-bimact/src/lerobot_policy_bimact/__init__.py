"""Policies of bimact in LeRobot, which imports this package by its name."""

from lerobot_policy_bimact.configuration_bimact import BimactConfig
from lerobot_policy_bimact.modeling_bimact import BimactPolicy
from lerobot_policy_bimact.processor_bimact import make_bimact_pre_post_processors

__all__ = ["BimactConfig", "BimactPolicy", "make_bimact_pre_post_processors"]
