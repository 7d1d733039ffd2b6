"""What runs on the robot's computer: asks a policy server for actions, and moves the robot safely."""

__version__ = "0.1.0"
