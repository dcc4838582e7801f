"""SIGTERM becomes an exception, once; also around code with a handler of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from curation.termination import Terminated, handler_kept, terminable


def test_sigterm_raises_within_and_the_handler_before_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not issubclass(Terminated, Exception)


def leave(number: int, frame: Any) -> None:
    sys.exit(number)


def test_a_library_s_own_handler_does_not_stay_and_its_exit_is_understood() -> None:
    def init(times: int) -> None:
        signal.signal(signal.SIGTERM, leave)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated), terminable(), handler_kept():
        init(times=1)
    with terminable():
        with handler_kept():
            init(times=0)
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit), handler_kept():  # nobody asked for it
        sys.exit(3)


def test_in_a_thread_nothing_is_touched() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[Any] = []

    def work() -> None:
        with terminable(), handler_kept():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_second_sigterm_ends_the_process() -> None:
    code = (
        "import os, signal\nfrom curation.termination import Terminated, terminable\n"
        "with terminable():\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except Terminated: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"")
