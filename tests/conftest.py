"""Settings of every test: one thread, a private cache, and the data folder where there is one."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: xdist runs one worker a core

import pytest
import torch

torch.set_num_threads(1)

collect_ignore = ["far_device.py", "on_far_device.py"]  # looking for doctests in them would put the device into this process


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["THEORYLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws does not depend on the tests before it, which are others in every run on several processes."""
    torch.manual_seed(0)


@pytest.fixture
def data_folder() -> Path:
    """The folder of real data files; tests that need it skip where it is absent."""
    folder = os.environ.get("THEORYLAB_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("THEORYLAB_DATA does not name a folder of data files")
    return Path(folder)
