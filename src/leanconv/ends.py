"""How a program is ended before its end: SIGTERM (a batch system, Kubernetes, kill) and SIGINT (Ctrl-C).

The first signal ends it in order, at once (`ended_in_order`) or where what runs says so (`asked_to_stop`); from then on
the same signal has the system's own effect, which nothing can delay.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["EndRequest", "Terminated", "asked_to_stop", "ended_in_order"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Terminated(SystemExit):
    """SIGTERM ends the program, with the exit code that a shell gives for it; its text says how to go on."""

    def __init__(self, line: str = "") -> None:
        super().__init__(128 + signal.SIGTERM)
        self.line = line

    def __str__(self) -> str:
        return self.line


class EndRequest:
    """What has been asked for so far: `signal` is the first one that came, None before that."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.unanswered = False
        """Whether nobody outside handles SIGTERM, so that what is to be said about it must be said here."""
        self._install: Callable[[], None] = lambda: None

    def handle_again(self) -> None:
        """Take the signals back from whoever has taken them since."""
        self._install()

    def end(self, line: str) -> BaseException:
        """What to raise now that it has stopped: `KeyboardInterrupt` or `Terminated`, with that line."""
        return Terminated(line) if self.signal == signal.SIGTERM else KeyboardInterrupt(line)


@contextmanager
def asked_to_stop() -> Iterator[EndRequest]:
    """A scope in which the first SIGTERM or SIGINT is only noted, for who asks; the second one ends the process.

    Signals that the process ignores stay ignored. In any other thread than the main one nothing is noted: signals
    arrive there.
    """
    request = EndRequest()

    def note(number: int, frame: Any) -> None:
        request.signal = request.signal or signal.Signals(number)
        for wanted in _SIGNALS:
            signal.signal(wanted, signal.SIG_DFL)

    with _handled(note) as before:
        request.unanswered = before.get(signal.SIGTERM) == signal.SIG_DFL

        def install() -> None:
            for number in before:
                if request.signal is None:
                    signal.signal(number, note)

        request._install = install
        yield request


@contextmanager
def ended_in_order() -> Iterator[None]:
    """A scope, that of a command, in which the first signal raises `KeyboardInterrupt` or `Terminated` at once."""

    def end(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    with _handled(end):
        yield


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[dict[signal.Signals, Any]]:
    """A scope with that handler; what there was before comes back at the end. Yields it, for those that are handled."""
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not installed from Python
                before[number] = signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, was in before.items():
            signal.signal(number, was)
