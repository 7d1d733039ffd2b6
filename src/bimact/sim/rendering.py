"""Camera images of a scene, in fast or high quality."""

from __future__ import annotations

import atexit
import weakref

import numpy as np

from bimact.opengl import explain_missing_opengl, load_triton
from bimact.sim.tasks import mujoco

QUALITIES = ("fast", "high")
_SHADOW_MAP = 2048  # pixels in each direction: shadows' edges look as with MuJoCo's 4096


class Renderer:
    """Renders cameras of one scene at one size.

    `fast` has neither shadows nor multisampling; `high`, for videos, has shadows and takes three times as long on a
    CPU (with multisampling too: ten times). The quality is read from the model when the OpenGL context is created.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int, quality: str = "fast") -> None:
        if quality not in QUALITIES:
            raise ValueError(f"quality is one of {', '.join(QUALITIES)}, not '{quality}'")
        settings = model.vis.quality
        usual = settings.shadowsize, settings.offsamples
        settings.shadowsize, settings.offsamples = _SHADOW_MAP if quality == "high" else 0, 0
        # An off-screen buffer of exactly this size is the fastest to read back.
        model.vis.global_.offheight, model.vis.global_.offwidth = height, width
        load_triton()
        with explain_missing_opengl():
            self._renderer = mujoco.Renderer(model, height, width)
        settings.shadowsize, settings.offsamples = usual
        # At exit the context has to be freed before what was registered earlier: MuJoCo and other simulators end the
        # connection to the display there.
        self.close = weakref.finalize(self, self._renderer.close)
        self.close.atexit = False
        atexit.register(self.close)

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """The view (height, width, 3) uint8 RGB of a named camera."""
        self._renderer.update_scene(data, camera)
        return np.asarray(self._renderer.render())
