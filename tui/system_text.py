"""The user's instructions for the model: given on the command line or in a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import DocumentError


def system_text(arguments: argparse.Namespace) -> str | None:
    """The text of -sys or -sysf; None for neither. Raises DocumentError."""
    if arguments.system_prompt_file is None:
        text: str | None = arguments.system_prompt
        return text
    path = Path(arguments.system_prompt_file)
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise DocumentError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"{path} is not UTF-8 text; save it as UTF-8") from error
