"""What this machine offers and which known traps it holds: versions, torch, GL, video codecs, disk.

Whatever may crash a process (a GL driver, a broken torchvision) is tried in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wamkit import __version__
from wamkit.envs.libero_assets import GET_ASSETS, find_files, find_package

PINNED = {
    "mujoco": "3.3.0",
    "metaworld": "3.1.1",
    "gym-aloha": "0.1.5",
    "dm-control": "1.0.28",
    "hf-libero": "0.1.4",
    "robosuite": "1.4.0",
}  # other versions render or simulate differently
VIDEO_CODECS = {"h264": ("libx264", "h264"), "av1": ("libsvtav1", "libdav1d")}  # name: our encoder, our decoder
MIN_FREE_GB = 5.0

_GL_PROGRAM = """
from wamkit.envs.render import OffscreenRenderer
renderer = OffscreenRenderer(64, 64, "low_cost")
from OpenGL import GL
print(renderer.backend, "with", GL.glGetString(GL.GL_RENDERER).decode())
renderer.close()
"""
_TORCHVISION_REMEDY = (
    "It is not needed, and while it is broken transformers, diffusers and peft cannot be imported either: "
    "pip uninstall torchvision"
)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing looked at.

    Args:
        name: what was looked at.
        found: what is there, in one line.
        problem: what is wrong and what to do about it; empty when all is well.
        note: how to get what is optional and not here; empty when nothing lacks.
        facts: the same for programs, JSON-ready.
    """

    name: str
    found: str
    problem: str = ""
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def examine(folder: Path = Path()) -> Iterator[Check]:
    """Look at this machine, one check after the other.

    Args:
        folder: where data and checkpoints would be written; its disk is looked at.
    """
    looks: tuple[Callable[[], Check], ...] = (_python, _packages, _torch, _torchvision, _rendering, _libero, _video)
    for look in looks:
        yield look()
    yield _disk(folder)


def _python() -> Check:
    facts = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "wamkit": __version__,
        "system": platform.platform(),
        "cores": os.cpu_count(),
    }
    found = f"{facts['python']} ({sys.executable}), wamkit {__version__}, {facts['system']}, {facts['cores']} cores"
    return Check(name="python", found=found, facts=facts)


def _packages() -> Check:
    try:
        requirements = importlib.metadata.requires("wamkit") or []
    except importlib.metadata.PackageNotFoundError:
        return Check(name="packages", found="wamkit is not installed", problem="install it with: bash runs/setup.sh")
    needed = {_name(requirement) for requirement in requirements if "extra ==" not in requirement}
    versions = {name: _version(name) for name in sorted(map(_name, requirements)) if name != "wamkit"}
    problems = [f"{name} is missing" for name in sorted(needed) if not versions[name]]
    problems += [
        f"{name} {_version(name)} is installed, but {wanted} is what results were made with"
        for name, wanted in PINNED.items()
        if _version(name) not in (None, wanted)
    ]
    remedy = "; bring it in order with: bash runs/setup.sh" if problems else ""
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return Check(name="packages", found=found, problem="; ".join(problems) + remedy, facts=versions)


def _torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check(name="torch", found="cannot be imported", problem=f"{error}; install it again: bash runs/setup.sh")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    facts = {"version": torch.__version__, "build": build, "threads": torch.get_num_threads(), "gpus": gpus}
    found = f"{torch.__version__} ({build} build), {facts['threads']} threads, GPUs: {', '.join(gpus) or 'none'}"
    problem = ""
    if shutil.which("nvidia-smi") and not torch.version.cuda:
        problem = (
            "this machine has an NVIDIA driver, but torch is a CPU build; remove .venv and run: bash runs/setup.sh"
        )
    return Check(name="torch", found=found, problem=problem, facts=facts)


def _torchvision() -> Check:
    version = _version("torchvision")
    if version is None:
        return Check(name="torchvision", found="not installed, and not needed", facts={"version": None})
    error = _try("import torchvision")[1]
    problem = f"torchvision {version} cannot be imported ({error}). {_TORCHVISION_REMEDY}" if error else ""
    return Check(name="torchvision", found=version, problem=problem, facts={"version": version, "error": error})


def _rendering() -> Check:
    if _version("mujoco") is None:
        found, note = "mujoco is not installed, so nothing renders", "simulators need it: pip install 'wamkit[sim]'"
        return Check(name="rendering", found=found, note=note, facts={"backend": None})
    found, error = _try(_GL_PROGRAM)
    facts = {"backend": found.partition(" ")[0] or None, "MUJOCO_GL": os.environ.get("MUJOCO_GL")}
    return Check(name="rendering", found=f"{found}, check frame fine" if found else "none", problem=error, facts=facts)


def _libero() -> Check:
    """LIBERO is optional, and without scene assets most of it is of use still; neither is a problem of the machine."""
    try:
        find_package()
    except ModuleNotFoundError as error:
        return Check(name="libero", found="not installed", note=str(error), facts={"assets": None})
    try:
        assets = find_files().assets
    except FileNotFoundError:
        found = "installed, but its scene assets are not here, so its tasks cannot be simulated"
        return Check(name="libero", found=found, note=GET_ASSETS, facts={"assets": None})
    return Check(name="libero", found=f"installed, scene assets in {assets}", facts={"assets": str(assets)})


def _video() -> Check:
    try:
        import av
    except (ImportError, OSError) as error:
        return Check(name="video", found="PyAV cannot be imported", problem=f"{error}; pip install av")
    facts: dict[str, Any] = {}
    for name, (encoder, decoder) in VIDEO_CODECS.items():
        facts[name] = {"encode": _has_codec(encoder, "w"), "decode": _has_codec(decoder, "r")}
    lacking = [f"{verb} {name}" for name, can in facts.items() for verb in can if not can[verb]]
    problem = f"this PyAV cannot {', '.join(lacking)}; install the ordinary wheel of av" if lacking else ""
    able = [f"{name} ({', '.join(verb for verb in can if can[verb]) or 'no'})" for name, can in facts.items()]
    return Check(name="video", found=f"PyAV {av.__version__}: {', '.join(able)}", problem=problem, facts=facts)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 1e9
    problem = f"less than {MIN_FREE_GB:.0f} GB are free for data and checkpoints" if free < MIN_FREE_GB else ""
    return Check(
        name="disk", found=f"{free:.1f} GB free in {folder.resolve()}", problem=problem, facts={"free_gb": free}
    )


def _name(requirement: str) -> str:
    """`torch` of `torch>=2.7`."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    import av.codec

    try:
        av.codec.Codec(name, mode)
    except ValueError:
        return False
    return True


def _try(program: str, timeout_s: float = 120.0) -> tuple[str, str]:
    """Run a program in a process of its own: the last line it printed, and why it failed (empty when it did not)."""
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {timeout_s:.0f} s"
    printed = (done.stdout.strip() or " ").splitlines()[-1].strip()
    if done.returncode == 0:
        return printed, ""
    reason = (done.stderr.strip() or " ").splitlines()[-1].strip()
    return "", reason or f"the process ended with status {done.returncode}"
