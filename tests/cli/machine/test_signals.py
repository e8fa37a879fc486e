"""A signal ends a block even where Python ignores exceptions."""

import subprocess
import sys

import pytest

from tests.paths import ROOT

PROGRAM = """
import gc, os, signal, subprocess, time
from cli.machine.signals import raise_on_signals

def send():
    os.kill(os.getpid(), signal.SIGTERM)

class Destroyed:
    def __del__(self):
        send()
        sum(range(1000))

try:
    with raise_on_signals([signal.SIGTERM, signal.SIGINT], lambda number: KeyboardInterrupt(number)):
        {step}
        time.sleep(20)
except KeyboardInterrupt as interrupt:
    print(interrupt.args[0], signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""
STEPS = {
    "nowhere special": "send()",
    "a destructor": "x = Destroyed(); del x",
    "the hook of a fork": "os.register_at_fork(after_in_parent=send); "
    "subprocess.Popen(['true'], preexec_fn=lambda: None).wait()",
}


@pytest.mark.parametrize("place", STEPS)
def test_a_signal_ends_the_block_wherever_it_arrives(place: str) -> None:
    command = [sys.executable, "-c", PROGRAM.replace("{step}", STEPS[place])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=15)
    assert done.stdout.split() == ["15", "True"], done.stderr
