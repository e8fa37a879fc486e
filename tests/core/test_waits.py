"""Where Flower waits: what is changed of flwr is there to be changed, and another flwr is left alone."""

import subprocess
import sys
import time

import pytest

from core.waits import SLEEPS, Sleep
from tests.federation.conftest import ROOT


def test_this_flwr_is_the_one_whose_sleeps_are_known():
    """In a process of its own: it changes flwr."""
    code = "import core.waits as n; print(n.shorten_loop(), n.shorten_tries(), n.unpack_once())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-3:] == ["True"] * 3


def test_another_loop_is_left_alone():
    code = (
        "import core.waits as n, flwr.supernode.start_client_internal as loop\n"
        f"n.SLEEPS = {SLEEPS[:2]!r}; n.TRIES = {{'initial_backoff': 2}}; n.FOLDER = ['x y']\n"
        "before = loop.time; print(n.shorten_loop(), n.shorten_tries(), n.unpack_once(), loop.time is before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-4:] == ["False"] * 3 + ["True"]


def test_sleeps_grow_with_the_silence_up_to_what_flower_would_sleep(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    sleep = Sleep()
    sleep(0.5)
    sleep(3)
    sleep.busy -= 50
    sleep(3)
    sleep.busy -= 1000
    sleep(3)
    assert slept == pytest.approx([0.02, 0.02, 1.0, 3.0], abs=0.01)
