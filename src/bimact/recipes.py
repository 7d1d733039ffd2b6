"""The recipes for the simulated tasks: `bimact demo` runs one of them, `bimact proof` over several training seeds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How a policy for a task is made, as options of `bimact record` and `bimact train`.

    Attributes:
        task: the simulated task.
        episodes: demonstrations.
        record: further options of `bimact record`.
        train: options of `bimact train`.
    """

    task: str
    episodes: int = 50
    record: tuple[str, ...] = ()
    train: tuple[str, ...] = ("--config", "demo")

    def record_command(self, dataset: str) -> tuple[str, ...]:
        """The words of `bimact record` for this dataset."""
        words = ("record", "--task", self.task, "--episodes", str(self.episodes), "--output_dir", dataset)
        return (*words, *self.record)


# Options of `bimact train` that test the pipeline, not the policy.
QUICK = ("--num_steps", "20", "--val_split", "0.5", "--warmup_steps", "5", "--log_frequency", "10")

RECIPES = {
    recipe.task: recipe
    for recipe in (
        Recipe("transfer_cube"),
        # A few millimetres decide. The crop is where the grippers and both objects are.
        Recipe(
            "insertion",
            train=("--config", "demo", "--batch_size", "32", "--num_steps", "6000", "--recombine_arms", "0.8")
            + ("--encoder.crop", "[0.42,0.3,0.266667,0.4]", "--execute_steps", "100"),
        ),
    )
}
