"""From a trained policy to a robot: the policy server, and a simulated robot."""
