"""A request to stop, heard between two steps: the run can then save itself and end in order."""

from __future__ import annotations

import signal
import threading
from typing import Any

from jaxloss.train.processes import gathered

__all__ = ["Interruption"]


class Interruption:
    """A context in which SIGTERM sets a flag instead of ending the process; the earlier handlers return after it.

    signals: the signals to hear, e.g. `(signal.SIGTERM, signal.SIGINT)` to hear Ctrl-C too. A second one of the same
        kind is handled as it would have been without this context.

    Python allows handlers in the main thread alone: in another one this hears nothing.

    >>> with Interruption() as interruption:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interruption.requested()
    True
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)):
        self.signals = signals
        self.received: signal.Signals | None = None
        """The signal this process has received."""
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        while self._earlier:
            self._give_back(next(iter(self._earlier)))

    def requested(self) -> bool:
        """Whether any process has been asked to stop: the same answer in all, which must all ask at the same step."""
        return any(gathered("stop" if self.received is not None else ""))

    def _note(self, number: int, _: Any) -> None:
        again = self.received == number
        self.received = signal.Signals(number)
        if again:
            self._give_back(self.received)
            signal.raise_signal(number)

    def _give_back(self, number: signal.Signals) -> None:
        earlier = self._earlier.pop(number)
        signal.signal(number, signal.SIG_DFL if earlier is None else earlier)  # None: it was not set from Python
