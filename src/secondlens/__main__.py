"""The command line, as `python -m secondlens`."""

from .commands import main

main(prog_name="secondlens")
