"""The recipes for the simulated tasks: `bimact demo` runs one of them, `bimact proof` over several training seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace


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

_CUBE = Recipe("transfer_cube")
# A few millimetres decide. The crop is where the grippers and both objects are.
_INSERTION = Recipe(
    "insertion",
    train=("--config", "demo", "--num_steps", "6000", "--recombine_arms", "0.8")
    + ("--encoder.crop", "[0.42,0.3,0.266667,0.4]", "--execute_steps", "100"),
)
RECIPES = {recipe.task: recipe for recipe in (_CUBE, _INSERTION)}

# Drawn at each control step, since the policy sees one observation at a time: 20,000 looks from 50 demonstrations.
_LOOKS = (
    "camera_shift=0.03,camera_turn=3,field_of_view=1.07,light=2,light_direction=60,table_color=1,table_texture=1,"
    "object_color=0.7,object_texture=0.7,image_noise=10,blur=1.5,compression=20"
)
_LOOK_OPTIONS = ("--randomize", _LOOKS, "--randomize_steps", "1")
# For a policy that has to bear other cameras, lights and surfaces than those of its demonstrations.
ROBUST_RECIPES = {
    recipe.task: recipe
    for recipe in (
        replace(_CUBE, record=_LOOK_OPTIONS, train=(*_CUBE.train, "--num_steps", "3000")),
        replace(_INSERTION, record=_LOOK_OPTIONS),
    )
}
