from __future__ import annotations

import os
import subprocess
import sys
from ctypes import CDLL
from ctypes.util import find_library

import numpy as np
import pytest

from wamkit.envs import gl

needs_osmesa = pytest.mark.skipif(
    find_library("OSMesa") is None, reason="libOSMesa is not installed, as where set-up found that EGL works"
)


def picture() -> np.ndarray:
    rows, columns = np.mgrid[0:32, 0:32]
    return np.stack([rows * 8, columns * 8, np.where((rows - 16) ** 2 + (columns - 16) ** 2 < 60, 255, 0)], -1).astype(
        np.uint8
    )


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # Simulators that earlier tests ran in this process leave their choice behind.
    chosen = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    variables = {key: value for key, value in os.environ.items() if key not in chosen} | environment
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, env=variables)


def test_a_good_frame_passes() -> None:
    gl.check_frame(picture(), picture(), "egl")


def test_broken_frames_are_named() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    other = picture()
    other[0, 0] += 1
    for first, second, what in (
        (np.full_like(noise, 7), np.full_like(noise, 7), "constant frame"),
        (noise, noise, "noise"),
        (picture(), other, "two different frames"),
    ):
        with pytest.raises(
            RuntimeError, match=rf"with egl gives .*{what}.*MUJOCO_GL=osmesa.*apt-get install libosmesa6"
        ):
            gl.check_frame(first, second, "egl")


@needs_osmesa
def test_the_users_choice_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    assert gl.choose_backend() == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(RuntimeError, match=r"MUJOCO_GL.*'vulkan'.*egl, osmesa, glfw"):
        gl.choose_backend()


def test_without_any_library_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    # Ask the dynamic linker for libraries that no machine has.
    monkeypatch.setattr(gl.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(gl.ctypes, "CDLL", lambda name: CDLL(f"/nonexistent/{name}"))
    with pytest.raises(RuntimeError, match=r"egl: .*osmesa: .*apt-get install libosmesa6"):
        gl.choose_backend()
    assert "MUJOCO_GL" not in os.environ
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(RuntimeError, match=r"MUJOCO_GL=osmesa was asked for, .*apt-get install libosmesa6"):
        gl.choose_backend()


@pytest.mark.sim
def test_the_choice_comes_before_mujoco_is_imported() -> None:
    script = "import mujoco\nfrom wamkit.envs.gl import choose_backend\nchoose_backend()"
    assert "mujoco was imported before" in run(script).stderr


@pytest.mark.sim
@needs_osmesa
def test_osmesa_steps_in_where_egl_fails_and_the_log_says_so() -> None:
    script = (
        "import logging; logging.basicConfig(level='INFO')\n"
        "from wamkit.envs import gl\n"
        "gl._PROBES['egl'] = lambda: 'no EGL device'\n"
        "from wamkit.envs.render import OffscreenRenderer\n"
        "renderer = OffscreenRenderer(48, 64, 'low_cost')\n"
        "print(renderer.backend)\n"
        "renderer.close()\n"
    )
    result = run(script)
    assert result.stdout.strip() == "osmesa", result.stderr
    assert "rendering with osmesa (egl: no EGL device)" in result.stderr
