"""What runs on the robot's computer: asks a policy server for actions, and moves the robot safely."""

from bimact_client.client import PolicyClient, ServerError, ServerTimeout, ServerUnreachable
from bimact_client.control import ControlLoop, Report
from bimact_client.execution import Execution
from bimact_client.safety import Safety, Stopped

__version__ = "0.1.0"
__all__ = [
    "ControlLoop",
    "Execution",
    "PolicyClient",
    "Report",
    "Safety",
    "ServerError",
    "ServerTimeout",
    "ServerUnreachable",
    "Stopped",
]
