"""What `import bimact` offers; the command line does the same things through these functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimact.config import Config, settings, to_config
from bimact.errors import UserError
from bimact.hub import policy_folder, policy_name
from bimact.run_directory import CHECKPOINTS, Run

if TYPE_CHECKING:
    from bimact.data.episodes import Episodes
    from bimact.policy.inference import Policy
    from bimact.training.prepare import Request


def load_policy(
    path: str | Path | Run,
    *,
    checkpoint: str | int | None = None,
    device: str = "auto",
    precision: str | None = None,
    execute_steps: int | None = None,
    temporal_ensemble: bool | None = None,
    cameras: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
    task: str | None = None,
) -> Policy:
    """Load a policy that acts.

    Args:
        path: a run directory, a checkpoint file in one, or a policy of LeRobot or of the original ACT (its directory or
            weights file), which is converted in memory; or the name of a policy on the Hugging Face hub, "user/name" or
            "user/name@revision".
        checkpoint: of a run: `best`, `last` or an epoch; None: the best.
        device: cuda, cuda:1, mps, cpu, or auto.
        precision: of matrix products: auto, no (float32), bf16 or fp16; None: the run's `mixed_precision`.
        execute_steps: actions of each chunk to execute before the next prediction; None: as the run's config says.
        temporal_ensemble: predict at each step and average the overlapping chunks; None: as the run's config says.
        cameras: names of the cameras, for policies of other software whose files do not name them.
        image_size: height and width of their images, likewise.
        task: of a policy that is told its task (`task_conditioning`): the one of observations without a `task`.

    Raises:
        UserError: if there is no policy, it cannot be read, or a value is not possible.

    Example:
        >>> import bimact
        >>> policy = bimact.load_policy("runs/cube")
        >>> policy.reset()
        >>> action = policy.act({"image_top": image, "state": state})  # (A,), in the robot's units
    """
    from bimact.device import choose_device, choose_precision, precision_dtype
    from bimact.policy.inference import Policy
    from bimact.policy.loading import load_run
    from bimact.policy.metadata import Execution, Interface

    on_hub = None if isinstance(path, Run) else policy_name(path)
    copy = None if on_hub is None else policy_folder(str(path))
    path = path.path if isinstance(path, Run) else copy or Path(path).expanduser()
    if precision not in (None, "auto", "no", "bf16", "fp16"):
        raise UserError(f"precision is '{precision}', it has to be auto, no, bf16 or fp16")
    run = Run.of(path)
    if run.config_path.is_file() and (path.is_dir() or path.absolute().parent.name == CHECKPOINTS):
        if cameras is not None or image_size is not None:
            raise UserError(f"{run.path} is a run, which knows its cameras: leave cameras and image_size out")
        if path.is_file():
            if checkpoint is not None:
                raise UserError(f"{path} is a checkpoint already, so checkpoint '{checkpoint}' does not apply")
            checkpoint = path.stem.removeprefix("act-train-")
        loaded = load_run(run.path, "best" if checkpoint is None else checkpoint, device)
        network, config, interface = loaded.network, loaded.config, loaded.interface
        name = run.path.resolve().name if on_hub is None else on_hub[0]
        file, weights = loaded.checkpoint.name, loaded.checkpoint
    else:
        from bimact.interop.convert import PolicyFiles, read

        if checkpoint is not None:
            raise UserError(f"{path} is not a run directory, so checkpoint '{checkpoint}' does not apply")
        converted = read(PolicyFiles(path, cameras=cameras, image_size=image_size))
        for note in converted.notes:
            print(f"Note: {note}", flush=True)
        network = converted.policy.to(choose_device(device))
        config, interface = network.config, Interface.of_config(network.config)
        name = path.resolve().name if on_hub is None else on_hub[0]
        file, weights = converted.origin, None
    chosen = choose_precision(config.mixed_precision if precision is None else precision, choose_device(device))
    execution = Execution.of(config, execute_steps, temporal_ensemble)
    dtype = precision_dtype(chosen)
    policy = Policy(network, execution, interface, dtype=dtype, name=name, checkpoint=file, weights=weights)
    policy.set_task(task)
    return policy


def open_dataset(path: str | Path, *, cache_dir: str | Path | None = None, **selection: Any) -> Episodes:
    """Open demonstrations in any format that bimact reads; converted once if the format needs it.

    What is used and what is left out is printed.

    Args:
        path: a directory or file; a dataset's name on the Hugging Face hub; or a URL that fsspec knows.
        cache_dir: where downloads and converted copies go; None: next to the dataset, or the user's cache directory.
        selection: settings of `bimact train` that select a part of a dataset: cameras, state_keys, action_keys,
            state_dims, action_dims, episodes, exclude_episodes, max_episodes, skip_unreadable, skip_failed,
            filter_key, fps and color_order.

    Returns:
        the demonstrations: `state` (N, S), `actions` (N, A) and `images` of each camera (N, H, W, 3), one episode after
        the other; `lengths` of the episodes, `rows_of(episode)`, `fps`, names.

    Raises:
        UserError: if there is no such dataset, it is faulty, or it lacks what is selected.

    Example:
        >>> dataset = bimact.open_dataset("data/cube", cameras=["top"])
        >>> dataset.actions[dataset.rows_of(0)]  # (T, A) of the first episode
    """
    from bimact.data.opening import arrays_of, open_source
    from bimact.data.selection import Selection
    from bimact.data.summary import dataset_lines, unusable_lines

    for name in selection:
        if name not in settings() or not settings()[name].metadata["selects"]:
            raise TypeError(f"open_dataset() has no argument '{name}'")
    chosen = Selection.of(to_config(selection))
    source = chosen.applied_to(open_source(path, cache_dir=cache_dir))
    for line in dataset_lines(source):
        print(line)
    source.require_camera()
    episodes, read = arrays_of(source, cache_dir)
    for line in unusable_lines(read, known=source.unusable):
        print(line)
    return episodes


def train(
    config: Config | Mapping[str, Any] | str | Path | None = None,
    *,
    resume_from: str | Path | Run | None = None,
    override_config: bool = False,
    **settings: Any,
) -> Run:
    """Train a policy, or resume a training: what `bimact train` does.

    Args:
        config: YAML file, name of a config that bimact comes with, mapping or `Config`; None: that of the run to
            resume, or else the training guide's policy.
        resume_from: a run directory or a checkpoint file; "user/name": the weights of a policy on the Hugging Face
            hub; "auto": the output directory if it has a checkpoint, or else start there.
        override_config: whether a resumed run may have other settings than before.
        settings: on top of the config, such as `batch_size=16`; the encoder's as `encoder={"freeze": False}`.

    Returns:
        the run.

    Raises:
        UserError: for faulty input, if the loss goes wrong, or the memory is not enough.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; everything is saved.

    Example:
        >>> run = bimact.train("demo", dataset_dir="data/cube", output_dir="runs/cube")
        >>> run = bimact.train(resume_from=run)  # after an interruption
    """
    from bimact.training.prepare import request

    resume_from = resume_from.path if isinstance(resume_from, Run) else resume_from
    return train_request(request(config, settings, resume_from), resume_from, override_config)


def train_request(asked: Request, resume_from: str | Path | None = None, override_config: bool = False) -> Run:
    """`train` for settings that `bimact.training.prepare.request` has found."""
    evaluator = None
    if asked.config.eval_task is not None:
        from bimact.evaluation.in_training import RolloutsInTraining
        from bimact.sim.tasks import find_task

        find_task(asked.config.eval_task)
        evaluator = RolloutsInTraining
    from bimact.training.prepare import prepare_run

    prepared = prepare_run(asked, resume_from, override_config=override_config)
    from bimact.training.act_trainer import train_run

    return train_run(prepared, evaluator).run


def push(
    run: str | Path | Run,
    name: str,
    *,
    checkpoint: str | int = "best",
    public: bool = False,
    license: str | None = None,
    message: str = "Upload by bimact",
) -> str:
    """Upload a run's policy to the Hugging Face hub, with a model card: what `bimact push` does.

    Args:
        run: a run directory.
        name: of the policy there, as "user/name"; a new one is private.
        checkpoint: `best`, `last` or an epoch.
        public: whether a new repository can be read by everybody.
        license: as the hub names it, such as "apache-2.0"; None: the card says that none is given.
        message: of the commit.

    Returns:
        the address of its page.

    Raises:
        UserError: if there is no such run or checkpoint, without a login, or the hub cannot be reached.

    Example:
        >>> bimact.push("runs/cube", "alice/cube-act", license="apache-2.0")
        >>> policy = bimact.load_policy("alice/cube-act")
    """
    from bimact.evaluation.model_card import CARD, policy_upload

    path = run.path if isinstance(run, Run) else run
    upload, notes = policy_upload(path, name, checkpoint=checkpoint, license=license)
    return upload.announce_and_send(notes, CARD, public=public, message=message, is_trial=False) or ""


def push_dataset(
    path: str | Path,
    name: str,
    *,
    public: bool = False,
    license: str | None = None,
    message: str = "Upload by bimact",
) -> str:
    """Upload demonstrations to the Hugging Face hub, with a dataset card: what `bimact push-dataset` does.

    Args:
        path: the dataset's directory or file, in any format that bimact reads.
        name: of the dataset there, as "user/name"; a new one is private.
        public: whether a new repository can be read by everybody.
        license: as the hub names it, such as "cc-by-4.0"; None: the card says that none is given.
        message: of the commit.

    Returns:
        the address of its page.

    Raises:
        UserError: if there is no such dataset or it cannot be read, without a login, or the hub cannot be reached.

    Example:
        >>> bimact.push_dataset("data/cube", "alice/cube", license="cc-by-4.0")
    """
    from bimact.check.dataset_card import CARD, dataset_upload

    upload, _, notes = dataset_upload(path, name, license=license)
    return upload.announce_and_send(notes, CARD, public=public, message=message, is_trial=False) or ""


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a policy; the same stands in the run's `evaluation.json`.

    Attributes:
        path: of `evaluation.json`.
        offline: the error on demonstrations; None if it was not asked for.
        rollouts: successes in the simulation; None if they were not asked for.
        robustness: successes under perturbations of the simulation; None if they were not asked for.
    """

    path: Path
    offline: dict[str, Any] | None
    rollouts: dict[str, Any] | None
    robustness: dict[str, Any] | None = None

    @property
    def success_rate(self) -> float:
        """Successful rollouts, as a fraction.

        Raises:
            ValueError: if there were no rollouts.
        """
        if self.rollouts is None:
            raise ValueError("there were no rollouts: pass task=")
        return float(self.rollouts["success_rate"])


def evaluate(
    run: str | Path | Run,
    *,
    task: str | None = None,
    prompt: str | None = None,
    rollouts: int = 50,
    seed: int = 1000,
    execute_steps: int | None = None,
    temporal_ensemble: bool | None = None,
    videos: int = 0,
    image_size: tuple[int, int] | None = None,
    parallel: int | None = None,
    perturb: Mapping[str, float | str] | None = None,
    suite: str | None = None,
    dataset_dir: str | Path | None = None,
    episodes: Sequence[str] | None = None,
    exclude_episodes: Sequence[str] | None = None,
    skip_unreadable: bool = False,
    saliency: int = 0,
    checkpoint: str | int = "best",
    device: str = "auto",
    output_dir: str | Path | None = None,
) -> Evaluation:
    """Measure a policy: what `bimact evaluate` does.

    With `task` the policy is rolled out in the simulation. Without, or with `dataset_dir`, its chunks are compared with
    demonstrations: the held-out ones of its training, or those of `dataset_dir`.

    Args:
        run: a run directory, or a policy's name on the Hugging Face hub.
        task: `transfer_cube`, `insertion`, or a task of another package.
        prompt: of a policy that is told its task: the text of its training data that stands for `task`; None: `task`
            itself, or the only one.
        rollouts: how many.
        seed: of the first rollout's scene; the next ones follow.
        execute_steps: actions of each chunk to execute before the next prediction; None: as the run's config says.
        temporal_ensemble: predict at each step and average the overlapping chunks; None: as the run's config says.
        videos: how many of the first rollouts are filmed.
        image_size: height and width of the simulated cameras' images; None: as in training.
        parallel: number of environments that step together; None: from the number of CPU cores.
        perturb: perturbations of the simulation, name → magnitude (`bimact.sim.perturbations.PERTURBATIONS`); the
            result is `robustness` then, and that without them stays.
        suite: `robustness`: the simulation as it is, then each perturbation at several magnitudes.
        dataset_dir: demonstrations to compare with.
        episodes: numbers and names of those to use.
        exclude_episodes: those to leave out.
        skip_unreadable: leave out damaged episodes instead of stopping.
        saliency: moments of a demonstration at which pictures show which parts of the images the actions depend on.
        checkpoint: `best`, `last` or an epoch.
        device: cuda, cuda:1, mps, cpu, or auto.
        output_dir: where results and videos go; None: the run directory, or for a policy on the hub
            `evaluations/user/name`.

    Raises:
        UserError: if there is no such run, task or dataset, or the policy is not for them.

    Example:
        >>> bimact.evaluate("runs/cube", task="transfer_cube", rollouts=100).success_rate
    """
    from bimact.evaluation.results import add_results
    from bimact.files import check_writable
    from bimact.policy.loading import load_run

    if suite not in (None, "robustness"):
        raise UserError(f"suite is '{suite}', it has to be robustness")
    if suite and perturb:
        raise UserError("a suite has its own perturbations: give perturb or suite")
    if (suite or perturb) and task is None:
        raise UserError("perturbations are of the simulation: give a task")
    of_rollouts = {
        "execute_steps": execute_steps,
        "temporal_ensemble": temporal_ensemble,
        "video": videos or None,
        "prompt": prompt,
        "image_size": image_size,
        "parallel": parallel,
    }
    if task is None and (given := [name for name, value in of_rollouts.items() if value is not None]):
        raise UserError(f"{', '.join(given)}: of rollouts in the simulation, give a task too")
    if saliency < 0:
        raise UserError(f"--saliency is {saliency}, it has to be a number of moments, from 0")
    if saliency and task is not None and dataset_dir is None:
        raise UserError("--saliency is of demonstrations: leave the task out, or give --dataset_dir too")
    on_hub = None if isinstance(run, Run) else policy_name(run)
    directory = run if isinstance(run, Run) else Run.existing(run if on_hub is None else policy_folder(run) or run)
    folder = Path(output_dir) if output_dir is not None else directory.path
    if on_hub is not None and output_dir is None:
        folder = Path("evaluations") / on_hub[0]
    check_writable(folder)
    loaded = replace(load_run(directory.path, checkpoint, device), folder=folder)
    results: dict[str, Any] = {}
    if task is None or dataset_dir is not None:
        from bimact.evaluation.offline import evaluate_offline

        results["offline"] = evaluate_offline(
            loaded,
            None if dataset_dir is None else str(dataset_dir),
            episodes=episodes,
            exclude_episodes=exclude_episodes,
            skip_unreadable=skip_unreadable,
            saliency=saliency,
        )
    robustness = None
    if task is not None:
        from bimact.evaluation.rollout import RolloutSettings, evaluate_rollouts

        rollout_settings = RolloutSettings(
            task, rollouts, seed, execute_steps, temporal_ensemble, videos, image_size, parallel, prompt=prompt
        )
        if suite or perturb:
            from bimact.evaluation.rollout import evaluate_robustness
            from bimact.sim.perturbations import suite_of

            conditions = [perturb] if perturb else suite_of(loaded.config.cameras or ())
            robustness = evaluate_robustness(loaded, rollout_settings, conditions)
        else:
            results["rollouts"] = {task: evaluate_rollouts(loaded, rollout_settings)}
    path = add_results(folder, results)
    return Evaluation(path, results.get("offline"), results.get("rollouts", {}).get(task), robustness)


@dataclass(frozen=True)
class Comparison:
    """Two policies on the same scenes.

    Attributes:
        path: of the JSON file with the result.
        result: as `bimact.evaluation.compare.comparison` returns it, with both policies, the settings and each scene.
    """

    path: Path
    result: dict[str, Any]

    @property
    def better(self) -> str | None:
        """A, B, or None if it is not decided."""
        better = self.result["better"]
        return None if better is None else str(better)

    @property
    def difference(self) -> float:
        """Success rate of A minus that of B, as a fraction."""
        return float(self.result["stages"][0]["difference"])


def compare(
    run_a: str | Path | Run,
    run_b: str | Path | Run,
    *,
    task: str | None = None,
    rollouts: int = 200,
    seed: int = 1000,
    sequential: bool = False,
    execute_steps: int | None = None,
    temporal_ensemble: bool | None = None,
    perturb: Mapping[str, float | str] | None = None,
    image_size: tuple[int, int] | None = None,
    parallel: int | None = None,
    checkpoint: str | int | tuple[str | int, str | int] = "best",
    device: str = "auto",
    output: str | Path | None = None,
) -> Comparison:
    """Roll two policies out from the same scenes: what `bimact compare` does in the simulation.

    Args:
        run_a: a run directory, or a policy's name on the hub.
        run_b: another one, or the same one.
        task: None: that of the first run's demonstrations.
        rollouts: scenes, at most.
        seed: of the first scene.
        sequential: stop as soon as one policy is better, by a test that is valid at any time.
        execute_steps: actions of each chunk to execute; None: as each run's config says.
        temporal_ensemble: average overlapping chunks; None: as each run's config says.
        perturb: perturbations of the simulation, name → magnitude.
        image_size: height and width of the simulated cameras' images; None: as in each training.
        parallel: number of environments that step together; None: from the number of CPU cores.
        checkpoint: `best`, `last` or an epoch; two of them: one for each policy.
        device: cuda, cuda:1, mps, cpu, or auto.
        output: file of the result; None: `comparisons/RUN_B-TASK.json` in the first run directory.

    Raises:
        UserError: if a policy or the task does not exist, or a policy is not for it.

    Example:
        >>> bimact.compare("runs/a", "runs/b", task="transfer_cube", sequential=True).better
    """
    from bimact.evaluation.compare import compare_rollouts
    from bimact.evaluation.rollout import RolloutSettings
    from bimact.files import check_writable, write_json
    from bimact.policy.loading import load_run

    runs = [run.path if isinstance(run, Run) else run for run in (run_a, run_b)]
    checkpoints = checkpoint if isinstance(checkpoint, tuple) else (checkpoint, checkpoint)
    a, b = (load_run(policy_folder(run) or run, of, device) for run, of in zip(runs, checkpoints))
    task = task or a.interface.task
    if task is None:
        raise UserError(f"{a.run.path} does not say of which task it is: pass --task")
    on_hub = [policy_name(run) for run in runs]
    folder = a.run.path if on_hub[0] is None else Path("evaluations") / on_hub[0][0]
    other = b.run.path.resolve().name if on_hub[1] is None else on_hub[1][0].replace("/", "-")
    path = Path(output or folder / "comparisons" / f"{other}-{task}.json")
    check_writable(path.parent)
    settings = RolloutSettings(
        task=task,
        rollouts=rollouts,
        seed=seed,
        execute_steps=execute_steps,
        temporal_ensemble=temporal_ensemble,
        image_size=image_size,
        parallel=parallel,
        perturb=perturb or {},
    )
    result = compare_rollouts(a, b, settings, sequential=sequential)
    write_json(path, result)
    return Comparison(path, result)
