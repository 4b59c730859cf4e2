"""House rules that no linter knows: file sizes, names, what may be imported when, and what no tracked file mentions."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "wamkit"
CODE = ("src", "tests", "benchmarks", "runs", "packages")
TEXT = {".py", ".sh", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".jsonl", ".html", ".cfg", ""}
MAX_LINES = 600


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def text_files() -> Iterator[Path]:
    """Text that git holds or would take: everything but hidden tool folders and what .gitignore names."""
    ignored = {line.strip("/\n") for line in (ROOT / ".gitignore").read_text().splitlines()}
    kept = [path for path in ROOT.iterdir() if path.name not in {".git", *ignored}]
    for path in kept:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and file.suffix in TEXT and not ignored & set(file.relative_to(ROOT).parts):
                yield file


def test_no_file_is_too_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in python_files(*CODE)}
    assert len(lengths) > 10, "found almost no Python files; is this a checkout?"
    long = [f"{path.relative_to(ROOT)}: {length} lines" for path, length in lengths.items() if length > MAX_LINES]
    assert not long, f"split by meaning, {MAX_LINES} lines at most:\n" + "\n".join(long)


def test_files_are_named_for_what_they_hold() -> None:
    drawers = [str(path) for path in python_files(*CODE) if path.name in {"utils.py", "common.py", "misc.py"}]
    assert not drawers


def test_nothing_is_left_unfinished() -> None:
    marks = ("NotImplementedError", "TODO", "FIXME", "XXX")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in python_files("src")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if any(mark in line for mark in marks)
    ]
    assert not found, "\n".join(found)


def test_no_file_names_an_index_or_a_private_path() -> None:
    # Split so that this file does not mention them either.
    words = ("pypi" + ".org", "python" + "hosted", "download.pytorch" + ".org", "index" + "-url", "--index" + "=")
    words += ("find" + "-links", "deb.debian" + ".org", "/wo" + "rk/", "/ro" + "ot/", "/opt/" + "pypi")
    files = list(text_files())
    assert ROOT / "pyproject.toml" in files and Path(__file__) in files
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in files
        for word in words
        if word in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert not found, "\n".join(found)


def imported_modules(path: Path) -> set[str]:
    """First parts of everything a file imports, wherever in the file."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("banned", "allowed_in", "why"),
    [
        ({"torchvision", "torchcodec"}, "", "beside a CPU torch their CUDA wheels break transformers"),
        ({"pickle", "dill", "cloudpickle", "joblib"}, "envs", "only our own simulator processes may send objects"),
        ({"tyro", "argparse", "click", "typer"}, "cli", "one room parses arguments"),
        ({"datasets", "pandas", "lerobot"}, "", "pyarrow reads and writes the tables"),
    ],
    ids=["torchvision", "pickle", "arguments", "tables"],
)
def test_the_package_stays_clear_of(banned: set[str], allowed_in: str, why: str) -> None:
    found = {
        str(path.relative_to(ROOT)): sorted(imported_modules(path) & banned)
        for path in python_files("src")
        if path.relative_to(SOURCE).parts[0] != allowed_in and imported_modules(path) & banned
    }
    assert not found, f"{found}: {why}"


def light_modules() -> list[str]:
    """The modules that a command line needs before it starts to work."""
    at_work = ("execute", "codecs", "datasets", "import_weights", "published_datasets")
    paths = [
        SOURCE / "spec.py",
        SOURCE / "episode.py",
        *SOURCE.glob("cli/*.py"),
        *(path for path in SOURCE.glob("recipes/**/*.py") if path.stem not in at_work),
    ]
    light = ("config", "load_policy", "objective")
    paths += [path for stem in light for path in SOURCE.glob(f"models/*/{stem}.py")]
    paths += SOURCE.glob("planning/config.py")
    names = (".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in paths)
    return ["wamkit", *sorted(name.removesuffix(".__init__") for name in names)]


def test_commands_and_configurations_load_no_torch() -> None:
    heavy = ("torch", "transformers", "diffusers", "mujoco", "metaworld", "pyarrow", "av", "matplotlib", "scipy")
    program = (
        "import importlib, json, sys\n"
        "blame = {}\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name)\n"
        "    for heavy in json.loads(sys.argv[2]):\n"
        "        if heavy in sys.modules: blame.setdefault(heavy, name)\n"
        "print(json.dumps(blame))\n"
    )
    names = light_modules()
    assert "wamkit.cli.main" in names
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(names), json.dumps(heavy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}, "heavy package: the first module that brings it in"


def test_help_comes_at_once() -> None:
    """Fails above three times the half second that users are promised, so that a busy machine does not fail it."""
    program = "import sys; from wamkit.cli.main import main; main(['--help']); print(*sys.modules)"
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "numpy", "tyro", "rich"}
    print(f"wamkit --help: {min(seconds):.2f} s")
    assert min(seconds) < 1.5, seconds
