"""SIGINT and SIGTERM between steps, with real signals."""

import os
import signal
import threading

import pytest

from talltree.interrupt import Interrupts


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_sets_the_flag_only(name):
    with Interrupts() as interrupts:
        assert interrupts.requested is None
        os.kill(os.getpid(), getattr(signal, name))
        assert interrupts.requested == name


def test_a_second_interrupt_stops_at_once():
    with pytest.raises(KeyboardInterrupt), Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_after_a_termination_stops_at_once():
    with pytest.raises(KeyboardInterrupt), Interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_termination_changes_nothing():
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.requested == "SIGTERM"


def test_the_earlier_handlers_come_back_after_an_error_too():
    def mine(number, frame):
        pass

    previous = signal.signal(signal.SIGTERM, mine)
    inherited = signal.getsignal(signal.SIGINT)  # a shell ignores it for what it runs in the background
    try:
        with pytest.raises(ZeroDivisionError), Interrupts():
            assert signal.getsignal(signal.SIGTERM) is not mine
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is inherited
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_outside_the_main_thread_nothing_is_changed():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with Interrupts() as interrupts:
            seen.append((interrupts.requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
    assert signal.getsignal(signal.SIGINT) is before
