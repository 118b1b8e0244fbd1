"""Jobs for tests/test_first_contact.py: what a card may do to a process that asks it something."""

import os
import subprocess
import sys
import time


def writes(write, value=1):
    write({"value": value})


def raises(write):
    write({"value": "before"})
    raise ValueError("what it said")


def dies(write):
    write({"value": "before"})
    os.abort()


def hangs(write, seconds=60):
    write({"value": "before"})
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
    write({"child": child.pid})
    time.sleep(seconds)


def floods(write):
    for _ in range(2000):
        sys.stdout.write("x" * 10_000 + "\n")
    sys.stdout.write("the end\n")
    write({"value": "after"})
