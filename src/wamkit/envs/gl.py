"""Which OpenGL library MuJoCo renders with: decided before mujoco is imported, logged, and checked on a real frame.

MuJoCo reads `MUJOCO_GL` once, when it is imported. EGL is tried first, because it uses a GPU where there is one and is
the faster of the two on a CPU; it can fail to initialise in containers, and OSMesa works everywhere.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import os
import sys

import numpy as np
from jaxtyping import UInt8

logger = logging.getLogger(__name__)

BACKENDS = ("egl", "osmesa")
REMEDY = "On Debian or Ubuntu: apt-get install libosmesa6 (or, for EGL: apt-get install libegl1 libgl1 libgl1-mesa-dri)"


def choose_backend() -> str:
    """Decide what MuJoCo renders with, set `MUJOCO_GL` accordingly for this process and its children, and log it.

    A `MUJOCO_GL` set by the user is honoured. Call before anything imports mujoco.

    Returns:
        The value of `MUJOCO_GL`.

    Raises:
        RuntimeError: neither EGL nor OSMesa works here, or mujoco was imported earlier with a windowed backend.
    """
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    if asked:
        if asked not in _KNOWN:
            raise RuntimeError(
                f"MUJOCO_GL is {asked!r}; MuJoCo knows {', '.join(_KNOWN)}, and the first two need no display"
            )
        if asked in _PROBES and (reason := _PROBES[asked]()):
            raise RuntimeError(f"MUJOCO_GL={asked} was asked for, but does not work here: {reason}. {REMEDY}")
        logger.info("rendering with %s, as MUJOCO_GL asks", asked)
        return asked
    if "mujoco" in sys.modules:
        raise RuntimeError(
            "mujoco was imported before a rendering backend was chosen, so it will look for a display; set "
            "MUJOCO_GL=egl or MUJOCO_GL=osmesa in the environment, or call wamkit.envs.gl.choose_backend() first"
        )
    reasons: list[str] = []
    for backend in BACKENDS:
        reason = _PROBES[backend]()
        if not reason:
            os.environ["MUJOCO_GL"] = backend
            logger.info("rendering with %s%s", backend, f" ({'; '.join(reasons)})" if reasons else "")
            return backend
        reasons.append(f"{backend}: {reason}")
    raise RuntimeError(f"no OpenGL library to render with ({'; '.join(reasons)}). {REMEDY}")


def check_frame(first: UInt8[np.ndarray, "h w 3"], second: UInt8[np.ndarray, "h w 3"], backend: str) -> None:
    """Check two renders of one and the same scene: equal, not constant, not noise.

    Args:
        first: a render.
        second: the same render again.
        backend: name for the message.

    Raises:
        RuntimeError: saying which of the three is wrong.
    """
    problem = ""
    grey = first.astype(np.float64).mean(axis=-1)
    if grey.std() < 1.0:
        problem = f"a constant frame (all pixels near {grey.mean():.0f})"
    elif not np.array_equal(first, second):
        problem = "two different frames of the same scene"
    else:
        # Noise has uncorrelated neighbours; any picture of surfaces is far above one half.
        across = np.corrcoef(grey[:, 1:].ravel(), grey[:, :-1].ravel())[0, 1]
        down = np.corrcoef(grey[1:].ravel(), grey[:-1].ravel())[0, 1]
        if min(across, down) < 0.5:
            problem = f"noise (neighbouring pixels correlate by {across:.2f} and {down:.2f} only)"
    if problem:
        other = "osmesa" if backend == "egl" else "egl"
        raise RuntimeError(f"rendering with {backend} gives {problem}; try MUJOCO_GL={other}. {REMEDY}")


def _probe_egl() -> str:
    """Why EGL cannot make an OpenGL context here; empty when it can."""
    try:
        egl = ctypes.CDLL(ctypes.util.find_library("EGL") or "libEGL.so.1")
        # PyOpenGL loads libGL too, and fails with an AttributeError about None when it is missing.
        ctypes.CDLL(ctypes.util.find_library("OpenGL") or ctypes.util.find_library("GL") or "libGL.so.1")
    except OSError as error:
        return str(error)
    pointer = ctypes.c_void_p
    egl.eglGetProcAddress.restype = pointer
    query_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query_address or not display_address:
        return "the driver has no EGL device extension"
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, pointer, pointer)(query_address)
    get_display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display_address)
    devices, count = (pointer * 16)(), ctypes.c_int()
    if not query(len(devices), devices, ctypes.byref(count)) or count.value == 0:
        return "no EGL device"
    for device in devices[: count.value]:
        display = get_display(_EGL_PLATFORM_DEVICE, device, None)
        if display and egl.eglInitialize(pointer(display), None, None):
            return "" if _has_opengl_context(egl, pointer(display)) else "no OpenGL context on the EGL device"
    return "no EGL device can be initialised"


def _has_opengl_context(egl: ctypes.CDLL, display: ctypes.c_void_p) -> bool:
    # The display stays initialised: it is shared by the whole process, and MuJoCo initialises and ends it itself.
    pointer = ctypes.c_void_p
    egl.eglCreateContext.restype = pointer
    attributes = (ctypes.c_int * 5)(*_EGL_CONFIG)
    config, count = pointer(), ctypes.c_int()
    if not egl.eglChooseConfig(display, attributes, ctypes.byref(config), 1, ctypes.byref(count)) or not count.value:
        return False
    if not egl.eglBindAPI(_EGL_OPENGL_API):
        return False
    context = egl.eglCreateContext(display, config, None, None)
    if not context:
        return False
    egl.eglDestroyContext(display, pointer(context))
    return True


def _probe_osmesa() -> str:
    """Why OSMesa cannot make a context here; empty when it can."""
    name = ctypes.util.find_library("OSMesa")
    if name is None:
        return "libOSMesa is not installed"
    try:
        osmesa = ctypes.CDLL(name)
    except OSError as error:
        return str(error)
    osmesa.OSMesaCreateContextExt.restype = ctypes.c_void_p
    context = osmesa.OSMesaCreateContextExt(_OSMESA_RGBA, 24, 8, 0, None)
    if not context:
        return "OSMesa cannot make a context"
    osmesa.OSMesaDestroyContext(ctypes.c_void_p(context))
    return ""


_PROBES = {"egl": _probe_egl, "osmesa": _probe_osmesa}
_KNOWN = ("egl", "osmesa", "glfw", "glx", "wgl", "cgl", "enable", "enabled", "on", "true", "1")
_EGL_PLATFORM_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT
_EGL_OPENGL_API = 0x30A2
_EGL_CONFIG = (0x3033, 0x0001, 0x3040, 0x0008, 0x3038)  # SURFACE_TYPE PBUFFER, RENDERABLE_TYPE OPENGL, NONE
_OSMESA_RGBA = 0x1908  # GL_RGBA
