"""A request to stop: heard between steps, and nothing left changed afterwards."""

import signal
import threading

import pytest

from jaxloss.train import Interruption

HEARD = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def _handlers_are_given_back():
    started = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
    before = [signal.getsignal(number) for number in HEARD]
    yield
    assert [signal.getsignal(number) for number in HEARD] == before
    signal.signal(signal.SIGINT, started)


@pytest.mark.parametrize("number", HEARD)
def test_a_signal_is_heard_and_does_not_end_the_process(number):
    with Interruption(HEARD) as interruption:
        assert not interruption.requested()
        assert interruption.received is None
        signal.raise_signal(number)
        assert interruption.requested()
        assert interruption.received == number


def test_only_the_named_signals_are_heard():
    with Interruption() as interruption:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert not interruption.requested()


def test_a_second_one_is_handled_as_before():
    with Interruption(HEARD) as interruption:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interruption.received == signal.SIGINT


def test_handlers_are_given_back_after_an_error():
    def leave():
        with Interruption(HEARD):
            raise RuntimeError("an error in a step")

    with pytest.raises(RuntimeError, match="in a step"):
        leave()


def test_contexts_nest():
    with Interruption() as outer:
        with Interruption() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert inner.requested()
        assert not outer.requested()
        signal.raise_signal(signal.SIGTERM)
        assert outer.requested()


def test_outside_the_main_thread_nothing_is_heard_and_nothing_fails():
    heard = []

    def work():
        with Interruption(HEARD) as interruption:
            heard.append(interruption.requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [False]
