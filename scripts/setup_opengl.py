"""See that MuJoCo can draw without a screen; where it cannot, install what it needs or say how."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from bimact.opengl import APT_PACKAGES, missing_opengl, opengl_works


def _apt_prefix() -> list[str] | None:
    """How to call apt-get with the rights to install; None where that is not possible without a password."""
    if shutil.which("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        return ["sudo", "-n"]
    return None


def _install() -> None:
    prefix = _apt_prefix()
    if prefix is None:
        return
    print(f"Installing {' '.join(APT_PACKAGES)} for headless rendering")
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *APT_PACKAGES]):
        subprocess.run([*prefix, *environment, "apt-get", *command], stdout=subprocess.DEVNULL, check=False)


def main() -> None:
    if not opengl_works():
        _install()
        if not opengl_works():
            # Not an error: training and offline evaluation do without.
            print(f"setup: {missing_opengl()}", file=sys.stderr)


if __name__ == "__main__":
    main()
