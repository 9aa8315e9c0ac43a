"""Packages whose pins conflict with ours, each in a folder of its own that goes before the installed packages.

``benchmarks/peers/MODULE.txt`` pins whatever the package with that module needs in another version than this environment's, or that is not
here. pip puts just these into the folder, without looking for others, and all else is shared: torch, and what is measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).parent / "peers"


def pins(module: str) -> Path:
    """The file that pins a package; it exists for those alone that are kept apart."""
    return PINS / f"{module}.txt"


def folder(module: str) -> Path:
    """Where they are put: within this environment, with which they go."""
    return Path(sys.prefix) / "peers" / module


def made(module: str) -> bool:
    """Whether the folder holds what is pinned now."""
    stamp = folder(module) / "pins.txt"
    return stamp.is_file() and stamp.read_bytes() == pins(module).read_bytes()


def make(module: str) -> None:
    """Install what is pinned, unless it is there.

    Raises:
        RuntimeError: pip could not; its last line says why.
        OSError: this environment cannot be written.
    """
    if made(module):
        return
    target = folder(module)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(target)]
    # without the path of modules that this process was started with, for pip is not to see what it holds
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([*command, "-r", str(pins(module))], env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "pip said nothing").splitlines()[-1])
    shutil.copyfile(pins(module), target / "pins.txt")


def environment(module: str) -> dict[str, str]:
    """Of a process that finds the folder's packages first."""
    before = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder(module)), *before])}
