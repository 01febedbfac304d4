"""Starts the application on a real terminal and gives the terminal back, whatever happens.

The order matters: the resource tracker of multiprocessing is started while stderr still has a
file descriptor (downloads need it later), then everybody's output is led away from the screen,
then Textual is imported.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path

from ..config import SessionConfig
from ..paths import state_dir
from ..shared_options import extraction
from .engine import ChatSettings, Engine
from .leaving import Leaving
from .session_engine import EngineSettings, SessionEngine
from .system_text import system_text
from .terminal import guarded_output, open_log

LOG = "chat.log"
END_SECONDS = 2.0
"""How long the engine may take to end after the screen is gone."""


def chat(arguments: argparse.Namespace, config: SessionConfig, sampling: dict[str, float]) -> int:
    """Runs `retrolocal chat` in the terminal's whole screen; returns the exit code."""
    engine = SessionEngine(
        EngineSettings(
            model=arguments.model,
            config=config,
            files=tuple(arguments.file),
            extraction=partial(extraction, arguments),
            corpus=arguments.corpus,
            store=not arguments.no_store,
            system=system_text(arguments),
            sampling=sampling,
            max_new_tokens=arguments.predict,
            stop=tuple(arguments.reverse_prompt),
            ignore_eos=arguments.ignore_eos,
        )
    )
    settings = ChatSettings(
        model=arguments.model or "a model",
        documents=tuple(arguments.file),
        corpus=arguments.corpus,
        mouse=not arguments.no_mouse,
        hides_thinking=arguments.hidethinking,
    )
    return run(engine, settings, state_dir())


def run(engine: Engine, settings: ChatSettings, state: Path) -> int:
    """Runs the application with an engine; returns the exit code."""
    resource_tracker.ensure_running()
    settings = keeping(settings, state)
    log = state / LOG
    leaving = Leaving()
    with guarded_output(log if settings.keeps_log else Path(os.devnull), lambda: app.hang_up()):
        from .app import ChatApp

        app = ChatApp(engine, settings, state, insist=leaving.insist)
        app.run(mouse=settings.mouse)
        bridge = app.end_engine()
    if app.left is None:
        details = f"{log} has the details" if settings.keeps_log else "there is no log of it"
        app.say_at_the_end(f"the interface failed; {details}")
    # Nobody is there to be told where the terminal is gone.
    with suppress(OSError):
        for line in app.last_words:
            print(f"retrolocal: {line}", file=sys.stderr)
    code = 1 if app.left is None else app.left
    if bridge is not None and not bridge.join(END_SECONDS):
        # An engine in the middle of a long step would hold the program; all that is kept is
        # written by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    leaving.done()
    return code


def keeping(settings: ChatSettings, state: Path) -> ChatSettings:
    """The settings with what can be kept in the folder `state`, and a line about what cannot."""
    try:
        os.close(open_log(state / LOG))
        return settings
    except OSError as error:
        problem = error.strerror or error
    chats = state.is_dir() and os.access(state, os.W_OK | os.X_OK)
    line = f"The log cannot be kept in {state / LOG} ({problem})."
    if not chats:
        line = f"Chats and the log cannot be kept in {state} ({problem}); set XDG_STATE_HOME."
    notes = (*settings.notes, line)
    return replace(settings, notes=notes, keeps_chats=chats, keeps_log=False)
