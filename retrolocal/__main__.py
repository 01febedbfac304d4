"""The command `retrolocal`, also `python -m retrolocal`; an interrupt while it starts is quiet."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command of this process and returns the exit code."""
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write("\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
