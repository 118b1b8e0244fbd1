"""One job of a stage, in a process of its own: `python -m benchmarks.first_contact.job JOURNAL SPECIFICATION`.

SPECIFICATION is a JSON object: `stage` and `job` by name, `function` as module:name, its `arguments`, and the `seconds`
after which the process is killed; a little before that it says where it is. The function gets `write`, which appends a
result, and the arguments.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.first_contact.journal import Journal

Write = Callable[[dict[str, Any]], None]
BEFORE_THE_END = 1.0  # seconds


def main(arguments: list[str]) -> int:
    """Run a job; return 1 where it raised, which is a result like others."""
    journal, given = Journal(Path(arguments[0])), json.loads(arguments[1])
    if given["seconds"] > 2 * BEFORE_THE_END:
        faulthandler.dump_traceback_later(given["seconds"] - BEFORE_THE_END)
    began = time.monotonic()

    def write(record: dict[str, Any]) -> None:
        at = round(time.monotonic() - began, 2)
        journal.write({"stage": given["stage"], "job": given["job"], "after": at, **record})

    try:
        module, _, name = given["function"].partition(":")
        getattr(importlib.import_module(module), name)(write, **given["arguments"])
    except Exception as error:
        traceback.print_exc()
        write({"raised": f"{type(error).__name__}: {error}"[:800], "trace": traceback.format_exc()[-1500:]})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
