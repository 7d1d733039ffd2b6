"""Changes of the simulated world with a name and a magnitude, to measure how a policy does when the world changes.

They change what the policy observes and what the robot does, never the task's reward. All that is random in them is a
function of the scene's seed, the perturbation's name and the control step: a scene is the same for every policy, and a
perturbation is the same alone and together with others.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageFilter

from bimact.errors import UserError
from bimact.sim.tasks import FPS, Scene, Task, mujoco

Magnitude: TypeAlias = float | str


@dataclass(frozen=True)
class Perturbation:
    """What can change, and by how much.

    Attributes:
        meaning: of the magnitude, with its unit.
        suite: magnitudes that `--suite robustness` evaluates.
        neutral: magnitude that changes nothing; None: the magnitude is a camera.
        low: smallest magnitude.
        high: largest magnitude.
    """

    meaning: str
    suite: tuple[float, ...] = ()
    neutral: float | None = 0.0
    low: float = 0.0
    high: float = 1.0


PERTURBATIONS: dict[str, Perturbation] = {
    "camera_shift": Perturbation("all cameras moved, each in a random direction: metres", (0.01, 0.02, 0.04), high=0.5),
    "camera_turn": Perturbation("all cameras turned, each about a random axis: degrees", (1, 2, 4), high=90),
    "field_of_view": Perturbation("factor of the cameras' field of view", (0.95, 1.05), 1, 0.5, 2),
    "light": Perturbation("factor of the intensity of all lights", (0.5, 0.7, 1.5), 1, 0, 5),
    "light_direction": Perturbation("all lights turned about a random axis: degrees", (30, 60), high=180),
    "table_color": Perturbation("share of a random colour in the table's", (0.5, 1)),
    "table_texture": Perturbation("contrast of a random pattern on the table", (0.5, 1)),
    "object_color": Perturbation("share of a random colour in the objects'", (0.5, 1)),
    "object_texture": Perturbation("contrast of a random pattern on the objects", (0.5, 1)),
    "object_size": Perturbation("factor of the objects' size; their mass stays", (0.9, 1.1), 1, 0.5, 1.5),
    "friction": Perturbation("factor of all friction coefficients", (0.5, 2), 1, 0.05, 10),
    "outside": Perturbation(
        "objects start this far outside of the demonstrations' range, at a random side: metres", (0.02, 0.04), high=0.2
    ),
    "image_noise": Perturbation("standard deviation of noise on pixels, of 255", (5, 15), high=255),
    "blur": Perturbation("standard deviation of Gaussian blur: pixels", (1, 2), high=20),
    "compression": Perturbation("quality of JPEG compression", (30, 10), 100, 1, 100),
    "frozen_camera": Perturbation("a camera, or all, whose first image stays", neutral=None),
    "black_camera": Perturbation("a camera, or all, whose images are black", neutral=None),
    "action_noise": Perturbation(
        "standard deviation of noise on each action: radians, and share of the gripper's opening", (0.005, 0.02)
    ),
    "dropped": Perturbation("probability that an observation is lost; the one before is seen", (0.5, 0.8), high=0.99),
    "delay": Perturbation("age of observations: control steps", (1, 2, 5), high=100),
    "control_rate": Perturbation(
        f"new targets per second: the other ones of the {FPS} actions per second are skipped", (25,), FPS, 1, FPS
    ),
}
_PATTERNS = 4  # of each kind of surface
# What may be randomised in demonstrations: the demonstrator's motion stays right under it.
LOOKS = (
    *("camera_shift", "camera_turn", "field_of_view", "light", "light_direction", "table_color", "table_texture"),
    *("object_color", "object_texture", "image_noise", "blur", "compression"),
)


def parse_perturbations(text: str, option: str = "--perturb") -> dict[str, Magnitude]:
    """`camera_shift=0.02,delay=2` → name → magnitude, in the order in which they stand.

    Args:
        text: of the option.
        option: its name, for messages.

    Raises:
        UserError: if there is no such perturbation, or its magnitude is not possible.
    """
    magnitudes: dict[str, Magnitude] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not value:
            raise UserError(f"{option} has '{part.strip()}', it has to be NAME=MAGNITUDE such as camera_shift=0.02")
        if name in magnitudes:
            raise UserError(f"{option} has {name} twice: give one magnitude")
        magnitudes[name] = value
        if name in PERTURBATIONS and PERTURBATIONS[name].neutral is not None:
            try:
                magnitudes[name] = float(value)
            except ValueError:
                raise UserError(f"{option} {name} is '{value}', it has to be a number") from None
    check_perturbations(magnitudes)
    return magnitudes


def check_perturbations(magnitudes: Mapping[str, Magnitude], cameras: Sequence[str] | None = None) -> None:
    """Whether all of them exist with these magnitudes.

    Args:
        magnitudes: by name.
        cameras: of the policy, for those of a camera; None: not known yet.

    Raises:
        UserError: if not.
    """
    for name, magnitude in magnitudes.items():
        known = PERTURBATIONS.get(name)
        if known is None:
            raise UserError(f"there is no perturbation '{name}'; there are {', '.join(PERTURBATIONS)}")
        if known.neutral is None:
            if cameras is not None and magnitude not in (*cameras, "all"):
                raise UserError(
                    f"perturbation {name} is '{magnitude}', it has to be a camera of the policy ({', '.join(cameras)}) "
                    "or all"
                )
        elif isinstance(magnitude, str) or not known.low <= magnitude <= known.high:
            limits = f"from {known.low:g} to {known.high:g}"
            raise UserError(f"perturbation {name} is {magnitude}, it has to be {limits}: {known.meaning}")
        elif name == "delay" and magnitude != int(magnitude):
            raise UserError(f"perturbation delay is {magnitude:g}, it has to be a whole number of control steps")


def in_text(magnitudes: Mapping[str, Magnitude]) -> str:
    """As `--perturb` takes them: `camera_shift=0.02,delay=2`."""
    return ",".join(
        f"{name}={value if isinstance(value, str) else format(value, 'g')}" for name, value in magnitudes.items()
    )


def suite_of(cameras: Sequence[str]) -> list[dict[str, Magnitude]]:
    """The conditions of `--suite robustness`: none, then each perturbation alone at each of its magnitudes.

    Args:
        cameras: of the policy; all of them black is the control, which shows whether it uses images at all.
    """
    conditions: list[dict[str, Magnitude]] = [{}]
    for name, perturbation in PERTURBATIONS.items():
        values: Sequence[Magnitude] = perturbation.suite
        if perturbation.neutral is None:
            values = (*cameras, "all") if len(cameras) > 1 else ("all",) * len(cameras)
        conditions += [{name: value} for value in values]
    return conditions


class Perturber:
    """Applies perturbations to a scene, to the actions that it gets, and to the images that come out of it.

    Args:
        magnitudes: by name.
        cameras: that are rendered.
        randomized: whether each episode draws its magnitudes: uniformly from 0 to the given one, and factors between
            the given one and its inverse. Patterns have the given contrast, and half of the episodes have none.
        randomize_steps: control steps after which they are drawn again; None: once per episode.

    Raises:
        UserError: if a perturbation does not exist, or its magnitude is not possible; if `randomize_steps` is below 1,
            or given for what does not only change looks.
    """

    def __init__(
        self,
        magnitudes: Mapping[str, Magnitude],
        cameras: Sequence[str],
        *,
        randomized: bool = False,
        randomize_steps: int | None = None,
    ) -> None:
        check_perturbations(magnitudes, cameras)
        if randomize_steps is not None and (randomize_steps < 1 or not randomized or not set(magnitudes) <= set(LOOKS)):
            raise UserError(
                f"randomize_steps is {randomize_steps}: it has to be 1 or more, and is of randomized {', '.join(LOOKS)}"
            )
        self._texts = {name: value for name, value in magnitudes.items() if isinstance(value, str)}
        self._given = {name: value for name, value in magnitudes.items() if not isinstance(value, str)}
        self._numbers = dict(self._given)  # of the present episode
        self._randomized = randomized
        self._randomize_steps = randomize_steps
        self._draw = 0  # of the magnitudes, in the present episode
        self._cameras = tuple(cameras)
        self._nominal: dict[str, np.ndarray] = {}
        self._seed = 0
        self._seen = np.zeros(0, dtype=int)
        self._target = np.zeros(0)
        self._first_images: dict[str, np.ndarray] = {}

    def edit(self, spec: mujoco.MjSpec) -> None:
        """Change the model before it is compiled: sizes of objects, and patterns that surfaces may get."""
        factor = self._numbers.get("object_size", 1.0)
        if factor != 1:
            for body in spec.bodies:
                if any(joint.type == mujoco.mjtJoint.mjJNT_FREE for joint in body.joints):
                    for geom in body.geoms:
                        geom.size, geom.pos = factor * geom.size, factor * geom.pos
        for surface in ("table", "object"):
            contrast = self._numbers.get(f"{surface}_texture", 0.0)
            for number in range(_PATTERNS if contrast else 0):
                name, pixels = f"{surface}-pattern-{number}", _pattern(number, contrast)
                texture = spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, nchannel=3)
                texture.height, texture.width, texture.data = *pixels.shape[:2], pixels.tobytes()
                material = spec.add_material(name=name, texuniform=True, texrepeat=[8, 8])
                material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
        if self._numbers.get("table_texture"):
            _cover_tables(spec)

    def begin(self, scene: Scene, task: Task, seed: int, steps: int) -> None:
        """Reset a scene to an episode's beginning, with what changes in it.

        Args:
            scene: compiled with `edit`.
            task: of the scene.
            seed: of the scene.
            steps: control steps of the episode.
        """
        self._seed, self._draw = seed, 0
        self._first_images = {}
        if self._randomized:
            self._numbers = {name: self._drawn(name, value) for name, value in self._given.items()}
        objects = task.sample_objects(seed)
        if self._numbers.get("outside"):
            draw = self._random("outside")
            for pose, (low, high) in zip(objects, task.start_boxes):
                axis, side = divmod(int(draw.integers(4)), 2)
                distance = self._numbers["outside"]
                pose[axis] = low[axis] - distance if side == 0 else high[axis] + distance
        scene.reset(objects)
        if self._changes_looks:
            self._change_looks(scene)
            mujoco.mj_forward(scene.model, scene.data)
        if "friction" in self._numbers:
            friction = self._nominal.setdefault("geom_friction", scene.model.geom_friction.copy())
            scene.model.geom_friction[:] = self._numbers["friction"] * friction
        delayed = np.maximum(np.arange(steps + 1) - int(self._numbers.get("delay", 0)), 0)
        lost = self._random("dropped").random(steps + 1) < self._numbers.get("dropped", 0.0)
        newest = np.maximum.accumulate(np.where(lost, 0, np.arange(steps + 1)))  # the first one always arrives
        self._seen = newest[delayed]

    def draw_looks(self, scene: Scene, step: int) -> None:
        """Draw what looks different at a control step, where that is drawn more than once per episode."""
        draw = step // self._randomize_steps if self._randomize_steps else 0
        if draw == self._draw:
            return
        self._draw = draw
        self._numbers = {name: self._drawn(name, value) for name, value in self._given.items()}
        if self._changes_looks:
            self._change_looks(scene)
            mujoco.mj_camlight(scene.model, scene.data)  # mj_forward would change the physics of the next step

    def action(self, action: np.ndarray, step: int) -> np.ndarray:
        """The target (14,) that the robot follows at a control step, counted from 0."""
        rate = self._numbers.get("control_rate", FPS)
        if step == 0 or int(step * rate / FPS) != int((step - 1) * rate / FPS):
            self._target = np.asarray(action, dtype=np.float64)
        noise = self._numbers.get("action_noise", 0.0)
        if not noise:
            return self._target
        return self._target + noise * self._random("action_noise", step).standard_normal(len(self._target))

    @property
    def shows_the_past(self) -> bool:
        """Whether observations may be older than the present."""
        return "delay" in self._numbers or "dropped" in self._numbers

    def seen_at(self, step: int) -> int:
        """The control step whose observation the policy gets at this one."""
        return int(self._seen[step])

    def image(self, image: np.ndarray, camera: str, step: int) -> np.ndarray:
        """The image (H, W, 3) uint8 that the policy gets of one that was rendered at a control step."""
        if self._texts.get("black_camera") in (camera, "all"):
            return np.zeros_like(image)
        if self._texts.get("frozen_camera") in (camera, "all"):
            image = self._first_images.setdefault(camera, image)
            step = 0
        if self._numbers.get("blur"):
            image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(self._numbers["blur"])))
        if self._numbers.get("image_noise"):
            noise = self._random("image_noise", step, self._cameras.index(camera)).standard_normal(image.shape)
            noisy = image + self._numbers["image_noise"] * noise
            image = noisy.round().clip(0, 255).astype(np.uint8)
        if self._numbers.get("compression", 100) < 100:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=int(self._numbers["compression"]))
            image = np.asarray(Image.open(file))
        return image

    def _drawn(self, name: str, given: float) -> float:
        """A magnitude, as it is drawn."""
        share = float(self._random(f"magnitude of {name}").random())
        if name.endswith("_texture"):
            return given if share < 0.5 else 0.0
        if PERTURBATIONS[name].neutral == 1:
            return float(given ** (2 * share - 1))
        neutral = PERTURBATIONS[name].neutral or 0.0
        return neutral + share * (given - neutral)

    @property
    def _changes_looks(self) -> bool:
        names = ("camera", "field", "light", "table", "object_color", "object_texture")
        return any(name.startswith(names) for name in self._numbers)

    def _change_looks(self, scene: Scene) -> None:
        """Cameras, lights and surfaces, from the scene's own ones each time."""
        model, numbers = scene.model, self._numbers
        if "cam_quat" not in self._nominal and numbers.keys() & {"camera_shift", "camera_turn"}:
            _fix_cameras(scene)
        for name in ("cam_pos", "cam_quat", "cam_fovy", "light_dir", "geom_rgba", "geom_matid", *_INTENSITIES):
            getattr(model, name)[:] = self._nominal.setdefault(name, getattr(model, name).copy())
        for name in _INTENSITIES:
            getattr(model, name)[:] *= numbers.get("light", 1.0)
        for name in ("ambient", "diffuse", "specular"):
            light = getattr(model.vis.headlight, name)
            nominal = self._nominal.setdefault(f"headlight_{name}", np.array(light))
            light[:] = numbers.get("light", 1.0) * nominal
        model.cam_fovy[:] *= numbers.get("field_of_view", 1.0)
        if numbers.get("camera_shift"):
            directions = _directions(self._random("camera_shift"), model.ncam)
            model.cam_pos[:] += numbers["camera_shift"] * directions
        if numbers.get("camera_turn"):
            for quaternion, axis in zip(model.cam_quat, _directions(self._random("camera_turn"), model.ncam)):
                mujoco.mju_mulQuat(quaternion, quaternion.copy(), _rotation(axis, numbers["camera_turn"]))
        if numbers.get("light_direction"):
            rotation = _rotation(_directions(self._random("light_direction"), 1)[0], numbers["light_direction"])
            for direction in model.light_dir:
                mujoco.mju_rotVecQuat(direction, direction.copy(), rotation)
        for surface, geoms in (("table", _table_geoms(model)), ("object", _object_geoms(model))):
            share = numbers.get(f"{surface}_color", 0.0)
            if share:
                color = self._random(f"{surface}_color").random(3)
                model.geom_rgba[geoms, :3] = (1 - share) * model.geom_rgba[geoms, :3] + share * color
            contrast = numbers.get(f"{surface}_texture", 0.0)
            if contrast:
                number = int(self._random(f"{surface}_texture").integers(_PATTERNS))
                model.geom_matid[geoms] = model.material(f"{surface}-pattern-{number}").id
                # Patterns darken by half of their contrast on average: the mean colour stays where it can.
                brighter = model.geom_rgba[geoms, :3] / (1 - contrast / 2)
                model.geom_rgba[geoms, :3] = brighter.clip(0, 1)

    def _random(self, name: str, *numbers: int) -> np.random.Generator:
        """Random numbers of a perturbation, the same whatever else is drawn."""
        name += f" {self._draw}" if self._draw else ""
        return np.random.default_rng((self._seed, zlib.crc32(name.encode()), *numbers))


_INTENSITIES = ("light_ambient", "light_diffuse", "light_specular")


def _fix_cameras(scene: Scene) -> None:
    """Cameras that turn towards a body keep the pose on their own body, so that a shift is not undone by turning."""
    model, data = scene.model, scene.data
    for camera in range(model.ncam):
        if model.cam_mode[camera] == mujoco.mjtCamLight.mjCAMLIGHT_FIXED:
            continue
        body = data.xmat[model.cam_bodyid[camera]].reshape(3, 3)
        mujoco.mju_mat2Quat(model.cam_quat[camera], (body.T @ data.cam_xmat[camera].reshape(3, 3)).flatten())
        model.cam_pos[camera] = body.T @ (data.cam_xpos[camera] - data.xpos[model.cam_bodyid[camera]])
        model.cam_mode[camera] = mujoco.mjtCamLight.mjCAMLIGHT_FIXED


def _cover_tables(spec: mujoco.MjSpec) -> None:
    """Lay a sheet that nothing touches on each table: a mesh has no coordinates by which a pattern could be laid."""
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    for geom in _table_geoms(model):
        if model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH:
            continue
        mesh, body = model.geom_dataid[geom], model.geom_bodyid[geom]
        first = model.mesh_vertadr[mesh]
        vertices = model.mesh_vert[first : first + model.mesh_vertnum[mesh]] @ data.geom_xmat[geom].reshape(3, 3).T
        vertices = (vertices + data.geom_xpos[geom] - data.xpos[body]) @ data.xmat[body].reshape(3, 3)
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        half, thickness = (high - low) / 2, 2e-4
        cover = spec.body(model.body(body).name).add_geom(
            name=f"{model.geom(geom).name}-cover", type=mujoco.mjtGeom.mjGEOM_BOX, contype=0, conaffinity=0, mass=0
        )
        cover.pos = [*(low + half)[:2], high[2] + thickness]
        cover.size, cover.rgba, cover.group = [*half[:2], thickness], model.geom_rgba[geom], model.geom_group[geom]


def _directions(draw: np.random.Generator, number: int) -> np.ndarray:
    """Unit vectors (number, 3), uniform over the sphere."""
    vectors = draw.standard_normal((number, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _rotation(axis: np.ndarray, degrees: float) -> np.ndarray:
    """The unit quaternion of a rotation."""
    quaternion = np.zeros(4)
    mujoco.mju_axisAngle2Quat(quaternion, axis, np.deg2rad(degrees))
    return quaternion


def _object_geoms(model: mujoco.MjModel) -> np.ndarray:
    """Geoms of bodies that move freely."""
    free = model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    return np.flatnonzero(np.isin(model.body_rootid[model.geom_bodyid], free))


def _table_geoms(model: mujoco.MjModel) -> np.ndarray:
    return np.array([number for number in range(model.ngeom) if "table" in model.geom(number).name], dtype=int)


def _pattern(number: int, contrast: float) -> np.ndarray:
    """Pixels (N, N, 3) uint8: white with dark checks, stripes, dots or speckles."""
    size = 96
    row, column = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    dark = (
        (row // 8 + column // 8) % 2 == 1,
        ((row + column) // 12) % 2 == 1,
        (row % 16 - 8) ** 2 + (column % 16 - 8) ** 2 < 41,
        np.kron(np.random.default_rng(0).random((size // 4, size // 4)) < 0.5, np.ones((4, 4))) > 0,
    )[number]
    face = np.where(dark, 255 * (1 - contrast), 255).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(face[..., None], (size, size, 3)))
