"""Raise an exception in the main thread when a signal arrives, and again if Python had to ignore it."""

import contextlib
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from types import FrameType

RETRY_S = 0.05


@contextlib.contextmanager
def raise_on_signals(numbers: Collection[int], error: Callable[[int], BaseException]) -> Iterator[None]:
    """During the block, raise `error(number)` when one of the signals arrives; later ones are ignored.

    In a destructor, or in a hook of a fork that subprocess makes, Python prints and ignores exceptions, and with them a
    signal. Such an exception is raised again a moment later. A signal that is ignored (nohup) stays ignored.
    """
    pending: list[BaseException] = []
    lost = False
    report, alarm = sys.unraisablehook, signal.getitimer(signal.ITIMER_REAL)

    def stop(number: int, _frame: FrameType | None) -> None:
        for handled in numbers:
            signal.signal(handled, signal.SIG_IGN)
        pending.append(error(number))
        raise pending[0]

    def stop_again(number: int, frame: FrameType | None) -> None:
        nonlocal lost
        if pending and lost:
            lost = False
            raise pending[0]
        if callable(handler := before[signal.SIGALRM]):  # the alarm is another's
            handler(number, frame)

    def retry(unraisable: "sys.UnraisableHookArgs") -> None:  # a name for type checkers alone
        nonlocal lost
        if pending and unraisable.exc_value is pending[0]:
            lost = True
            signal.setitimer(signal.ITIMER_REAL, RETRY_S)
        else:
            report(unraisable)

    before = {n: signal.getsignal(n) for n in (*numbers, signal.SIGALRM)}
    signal.signal(signal.SIGALRM, stop_again)
    for number in numbers:
        if before[number] != signal.SIG_IGN:
            signal.signal(number, stop)
    sys.unraisablehook = retry
    try:
        yield
        if lost:
            raise pending[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, *alarm)
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)
