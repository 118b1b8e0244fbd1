"""Run the command line: python -m fastclust."""

from fastclust.program import main

main()
