"""What the .gitignore files of a folder tree leave out, as git understands them.

`pathspec` knows the patterns; this module knows which file speaks for which path: the deepest one
that says anything, and none inside a folder that is left out itself (the walk does not go there).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DocumentError
from .source import open_source

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

_NAME = ".gitignore"
_MAX_BYTES = 1 << 20
_FOLDER = "ps_d"


@dataclass(frozen=True, slots=True)
class GitIgnore:
    """The rules that hold in one folder. Immutable."""

    rules: tuple[tuple[Path, GitIgnoreSpec], ...] = ()
    """Folder and its own rules, outermost first."""

    @classmethod
    def above(cls, folder: Path) -> GitIgnore:
        """The rules that reach `folder` from the git repository around it; none outside of one."""
        path = folder.resolve()
        chain = [path, *path.parents]
        root = next((n for n, parent in enumerate(chain) if (parent / ".git").exists()), 0)
        found = cls()
        for parent in reversed(chain[1 : root + 1]):
            found = found.inside(parent)
        return found

    def inside(self, folder: Path) -> GitIgnore:
        """These rules and those of a folder further in."""
        spec = _read(folder / _NAME)
        return self if spec is None else GitIgnore((*self.rules, (folder.resolve(), spec)))

    def excludes(self, path: Path, *, is_folder: bool) -> bool:
        """Whether the rules leave out what lies at `path`, itself not a link to be followed."""
        if not self.rules:
            return False
        place = path.parent.resolve() / path.name
        for folder, spec in reversed(self.rules):
            name = place.relative_to(folder).as_posix() + ("/" if is_folder else "")
            decision = _decision(spec, name)
            if decision is not None:
                return decision
        return False


def _decision(spec: GitIgnoreSpec, name: str) -> bool | None:
    """The last pattern that matches `name` itself has the word.

    `spec.check_file` also asks for the folders above and lets `!folder/` count for less.
    """
    for pattern in reversed(list(spec.patterns)):
        found = pattern.match_file(name) if pattern.include is not None else None
        if found is None:
            continue
        match = found.match
        # pathspec's group is the slash behind the matched folder: at the end, or of one above.
        if _FOLDER not in match.re.groupindex or match.start(_FOLDER) in (-1, len(name) - 1):
            return pattern.include
    return None


def _read(path: Path) -> GitIgnoreSpec | None:
    if path.is_symlink() or not path.is_file():
        return None
    try:
        from pathspec import GitIgnoreSpec
    except ImportError as error:
        raise DocumentError(
            f"{path} needs pathspec to be understood; install it with pip install pathspec"
        ) from error
    with open_source(path) as source:
        source.file.seek(0)
        lines = source.file.read(_MAX_BYTES).decode("utf-8", "replace").splitlines()
    patterns = []
    for line in lines:
        try:
            patterns += list(GitIgnoreSpec.from_lines([line]).patterns)
        except (ValueError, re.error):
            # git passes over a pattern that makes no sense, too.
            continue
    return GitIgnoreSpec(patterns)
