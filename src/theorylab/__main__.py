"""``python -m theorylab``: the command line, where the script is not on the path."""

from theorylab.cli import main

if __name__ == "__main__":  # spawned workers import this file again under another name
    raise SystemExit(main())
