"""Every instrument and every study keeps to the device that it was given: a pretended one, since machines for tests have no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

from theorylab.core.study import find_studies

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="this PyTorch cannot pretend a device"
)
SCRIPT = Path(__file__).with_name("on_far_device.py")
TOPICS = sorted({key.partition("/")[0] for key in find_studies()[0]})


def run(*arguments: str) -> str:
    """The script's output: nothing, where nothing went wrong."""
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr * (done.returncode != 0)


@pytest.mark.parametrize("model", ["mlp, minibatches", "cnn, BatchNorm eval", "attention, tied"])
def test_instruments_say_the_same_on_another_device(model: str) -> None:
    assert run("instruments", model) == ""


@pytest.mark.parametrize("topic", TOPICS)
def test_studies_run_on_another_device(topic: str) -> None:
    assert run("studies", topic) == ""


def test_a_tensor_left_behind_is_found() -> None:
    """The check itself: what a GPU would refuse, the pretended device refuses."""
    ask = """
import far_device, numpy, os, sys, torch
x = torch.ones(3, device="far")
for wrong in (
    lambda: x + torch.ones(3),
    lambda: torch.ones(3)[torch.arange(2, device="far")],
    lambda: x.index_put((torch.tensor([1]),), torch.ones(1)),
    lambda: torch.stack([x.sum(), torch.tensor(1.0)]),
    lambda: x.gather(0, torch.zeros(1, dtype=torch.long)),
    lambda: numpy.asarray(x),
    lambda: torch.randn(3, device="far", generator=torch.Generator()),
    lambda: torch.func.vmap(lambda a: a * torch.ones(2))(x),
    lambda: torch.nn.Linear(3, 1)(x),
):
    try:
        print("not refused", wrong())
    except RuntimeError:
        pass
y = (x.requires_grad_() * 2 + torch.tensor(1.0))[torch.tensor([0, 2])].sum()
y.backward()
assert x.grad.tolist() == [2, 0, 2] and x.grad.device == far_device.FAR
sys.stdout.flush()
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", ask], cwd=SCRIPT.parent, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
