"""Take a signal where Python drops what it raises: run by test_resuming in a process of its own.

    python deaf_moments.py SIGNAL

The command is one that gets the signal in a weak reference's callback, and would otherwise go on for a minute.
"""

import signal
import sys
import time
import weakref
from unittest import mock

from fastclust import program


class Thing:
    """What the weak reference is to."""


def command(**_: object) -> int:
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(int(sys.argv[1])))
    del thing
    assert reference() is None
    time.sleep(60)
    return 0


signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with mock.patch.object(program, "app", command):
    program.main()
