"""The file that results are appended to, a JSON object a line, by several processes at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """A file of results; a line is one write at its end, so that processes do not cut each other's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: dict[str, Any]) -> None:
        """Append a result, at once."""
        line = json.dumps(record, default=str) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def read(self, stage: str | None = None, job: str | None = None) -> list[dict[str, Any]]:
        """Return the results so far, of a stage and job where they are given; what is no whole line is left out."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return [one for one in found if stage in (None, one.get("stage")) and job in (None, one.get("job"))]
