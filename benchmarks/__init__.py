"""Benchmarks: `python -m benchmarks.run` verifies, then times; `python -m benchmarks.table` writes the README table."""
