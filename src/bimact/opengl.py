"""The headless OpenGL that MuJoCo renders with: selection, test, and messages where it is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

from bimact.errors import UserError

APT_PACKAGES = ("libegl1", "libgl1-mesa-dri", "libopengl0")
INSTALL_COMMAND = "apt-get install -y --no-install-recommends " + " ".join(APT_PACKAGES)
_PROBE = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 16, 16).render()"


def choose_backend() -> str:
    """Select the OpenGL platform before MuJoCo is imported, unless the user has: EGL on Linux.

    Returns:
        `egl`, `osmesa` or `glfw`.

    Raises:
        UserError: if MuJoCo was already imported with a platform that needs a screen, and there is none (it would
            end the process).
    """
    if sys.platform.startswith("linux") and "MUJOCO_GL" not in os.environ:
        has_screen = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
        if "mujoco" in sys.modules and not has_screen:
            raise UserError(
                "MuJoCo was imported before bimact.sim and looks for a screen: import bimact.sim first, "
                "or set MUJOCO_GL=egl"
            )
        os.environ["MUJOCO_GL"] = "egl"
    backend = os.environ.get("MUJOCO_GL", "glfw")
    if backend in ("egl", "osmesa"):
        os.environ["PYOPENGL_PLATFORM"] = backend  # PyOpenGL has to load the same library as MuJoCo
    # The worker processes use all cores already; Mesa's own threads would compete with them.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    return backend


def missing_opengl() -> UserError:
    """The error for all symptoms of a missing OpenGL."""
    return UserError(
        f"no headless OpenGL for MuJoCo (MUJOCO_GL={choose_backend()}): on Debian or Ubuntu run "
        f"`sudo {INSTALL_COMMAND}`, elsewhere install Mesa's EGL; only the simulation needs it"
    )


@contextmanager
def explain_missing_opengl() -> Iterator[None]:
    """Around MuJoCo's import and the creation of a context: obscure errors become `missing_opengl`."""
    choose_backend()
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError("the simulation is not installed: pip install 'bimact[sim]'") from error
    except (AttributeError, ImportError, RuntimeError, OSError) as error:
        # Seen: no attribute 'eglQueryString' or 'glGetError' of None, "Cannot initialize a headless EGL
        # display", no attribute '_context', gladLoadGL errors.
        raise missing_opengl() from error


def load_triton() -> None:
    """Load Triton, which PyTorch for CUDA brings: after Mesa's LLVM is loaded its import is a segmentation fault."""
    with suppress(ImportError):
        import_module("triton._C.libtriton")


def opengl_works() -> bool:
    """Try to create a context in a child process: a library that failed to load cannot be loaded again."""
    choose_backend()
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # no modules of the current folder
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, check=False, env=environment)
    return probe.returncode == 0
