"""`python -m compress`, where the command is not on the path."""

from compress.cli import main

main()
