"""Where LIBERO's files are: its task files and initial states (in the package), its scene assets (a download).

`hf-libero` asks a question on standard input when it is imported without a configuration file, and downloads scene
assets of its own accord. Neither happens here: the file is written first, and assets are looked for, never fetched.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from wamkit.envs.libero_tasks import suite_and_name

ASSETS_VARIABLE = "WAMKIT_LIBERO_ASSETS"
CONFIG_VARIABLE = "LIBERO_CONFIG_PATH"
_PACKAGES = ("libero", "robosuite", "bddl", "mujoco", "numba", "cv2", "gymnasium", "easydict", "future", "matplotlib")
_MARK = Path("scenes/libero_tabletop_base_style.xml")
_PREDICATE = re.compile(r"\(\s*((?!and\b)[A-Za-z]+(?:\s+\w+)+)\s*\)", re.IGNORECASE)  # of a task file's goal
_MISSING = re.compile(r"Error opening file|No such file")  # of MuJoCo's compiler
_INSTALL = (
    "pip install 'wamkit[libero]' and then pip install --no-deps hf-libero==0.1.4 robosuite==1.4.0 bddl==1.0.1 "
    "(in a checkout: bash runs/setup_extras.sh libero)"
)

GET_ASSETS = (
    "Fetch them once with network access (hf download lerobot/libero-assets --repo-type dataset --local-dir FOLDER, or "
    f"from the LIBERO project), then set {ASSETS_VARIABLE}=FOLDER"
)


@dataclass(frozen=True, kw_only=True)
class LiberoFiles:
    """Folders of the package and of the scene assets.

    Args:
        package: the folder `libero/libero` of the installed package.
        assets: meshes, textures and MJCF files.
    """

    package: Path
    assets: Path

    def task_file(self, task: str) -> Path:
        """The BDDL file that defines a task's scene and goal."""
        suite, name = suite_and_name(task)
        return self.package / "bddl_files" / suite / f"{name}.bddl"

    def goals(self, task: str) -> list[list[str]]:
        """The predicates of a task's goal with their arguments, for instance `["in", "milk_1", "basket_1…"]`."""
        text = self.task_file(task).read_text()
        return [found.lower().split() for found in _PREDICATE.findall(text[text.index("(:goal") + len("(:goal") :])]

    def initial_states(self, task: str) -> Float64[np.ndarray, "n q"]:
        """The initial states stored for a task: time, positions and velocities, one row each.

        Raises:
            ValueError: the file holds something else.
        """
        import torch

        suite, name = suite_and_name(task)
        path = self.package / "init_files" / suite / f"{name}.pruned_init"
        # Pickled numpy arrays; torch refuses whatever else a pickle could bring.
        reconstruct = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        allowed: list[Any] = [(reconstruct, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype]
        with torch.serialization.safe_globals([*allowed, type(np.dtype("float64"))]):
            states = torch.load(path, weights_only=True)
        if not isinstance(states, np.ndarray) or states.ndim != 2 or not np.isfinite(states).all():
            raise ValueError(f"{path}: expected a table of finite numbers, got {type(states).__name__}")
        return states.astype(np.float64)


def find_package() -> Path:
    """The folder `libero/libero` of the installed package, without importing it.

    Raises:
        ModuleNotFoundError: LIBERO or something it needs is not installed; the message says how to install it.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"LIBERO needs {', '.join(missing)}, not installed here: {_INSTALL}")
    spec = importlib.util.find_spec("libero")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for folder in folders:
        if (Path(folder) / "libero" / "benchmark").is_dir():
            return Path(folder) / "libero"
    raise ModuleNotFoundError(f"found a package named libero in {folders} that is not LIBERO's: {_INSTALL}")


def find_files() -> LiberoFiles:
    """The package and the scene assets.

    Assets are looked for in the folder that the environment variable `WAMKIT_LIBERO_ASSETS` names (and then nowhere
    else), in the one that the configuration file of LIBERO names, inside the package, and where its own downloader
    puts them.

    Raises:
        ModuleNotFoundError: LIBERO is not installed.
        FileNotFoundError: there are no assets; the message says where they were looked for and how to get them.
    """
    package = find_package()
    asked = os.environ.get(ASSETS_VARIABLE, "").strip()
    places = [Path(asked).expanduser()] if asked else _usual_places(package)
    for place in places:
        for folder in (place, place / "assets"):
            if (folder / _MARK).is_file():
                return LiberoFiles(package=package, assets=folder.resolve())
    looked = "\n  - ".join(str(place) for place in places)
    raise FileNotFoundError(
        f"LIBERO's scene assets are not here (expected {_MARK} in one of):\n  - {looked}\n"
        f"They are no part of the Python package. {GET_ASSETS}"
    )


def import_package(files: LiberoFiles) -> Any:
    """Import LIBERO's environments; asks nothing, fetches nothing. Call after the rendering backend was chosen.

    Returns:
        The package's module `libero.libero.envs`.
    """
    # Advice on macro files that nobody needs.
    for name in ("robosuite_logs", "robosuite"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _own_configuration(files):
        import libero.libero
        import libero.libero.envs
        import libero.libero.envs.env_wrapper

    libero.libero._assets_path_cache = str(files.assets)  # otherwise it may download them
    return libero.libero.envs


@contextlib.contextmanager
def _own_configuration(files: LiberoFiles) -> Iterator[None]:
    """A configuration file for the import, whatever the user's holds; the package reads it then and never again."""
    before = os.environ.get(CONFIG_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="wamkit-libero-") as folder:
        _write_config(Path(folder), files)
        os.environ[CONFIG_VARIABLE] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[CONFIG_VARIABLE]
            else:
                os.environ[CONFIG_VARIABLE] = before


def explain_missing(error: Exception, task: str, files: LiberoFiles) -> FileNotFoundError | None:
    """What to say when a scene could not be made because an asset is missing; `None` for any other error."""
    text = str(error)
    if not isinstance(error, FileNotFoundError) and not _MISSING.search(text):
        return None
    return FileNotFoundError(
        f"{task} needs a scene asset that is not in {files.assets} ({text.splitlines()[-1]}); packs for offline use do "
        f"not hold every object of libero_90. Fetch the complete assets and set {ASSETS_VARIABLE}, or leave the task "
        "out"
    )


def _usual_places(package: Path) -> list[Path]:
    stated = _stated_config()
    places = [stated] if stated is not None else []
    return [*places, package / "assets", Path.home() / ".cache" / "libero" / "assets"]


def _stated_config() -> Path | None:
    """The assets folder that an existing configuration file of LIBERO names."""
    folder = Path(os.environ.get(CONFIG_VARIABLE, "").strip() or Path.home() / ".libero").expanduser()
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    assets = content.get("assets") if isinstance(content, dict) else None
    return Path(assets).expanduser() if isinstance(assets, str) else None


def _write_config(folder: Path, files: LiberoFiles) -> None:
    import yaml

    keys = {
        "assets": files.assets,
        "bddl_files": files.package / "bddl_files",
        "benchmark_root": files.package,
        "datasets": folder / "datasets",
        "init_states": files.package / "init_files",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({key: str(path) for key, path in keys.items()}))
