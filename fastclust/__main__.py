"""Run the command line: python -m fastclust."""

from fastclust.cli import main

main()
