"""What the slash commands do; the keys that do the same come here, too.

A command raises RetrolocalError where it makes no sense; the screen then shows one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..chats import CORPUS, Chat, ChatStore, ChatTurn, as_markdown, place_of, write_private
from ..errors import DataError, DocumentError, UsageError
from . import answering
from .answer import Answer, Question
from .chats_screen import ChatsScreen
from .engine import Source, Turn
from .foreign import one_line
from .help_screen import HelpScreen
from .slash import Command, number

if TYPE_CHECKING:
    from .chat_screen import ChatScreen


class ChatCommands:
    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._saved: Chat | None = None
        self._written: tuple[ChatTurn, ...] = ()
        """The turns as they lie on the disk, or as they were when their chat was deleted."""

    @property
    def store(self) -> ChatStore:
        return ChatStore(self._screen.state / "chats")

    def run(self, command: Command, argument: str) -> None:
        """Does what a command says."""
        getattr(self, command.name)(argument)

    def file(self, argument: str) -> None:
        path = Path(argument.strip("'\"")).expanduser()
        if not path.exists():
            raise DocumentError(f"there is no file {path}; check the path")
        self._screen.set_documents([*self._screen.desk.paths, str(path)])
        corpus = self._screen.corpus
        if corpus is not None:
            self._screen.note(
                f"{path.name} is part of this chat only; the corpus {corpus} stays as it is "
                f"(retrolocal ingest FILE --corpus {corpus} adds to it)"
            )

    def docs(self, argument: str) -> None:
        desk = self._screen.desk
        lines = [
            f"{document.name}  {len(document.text):,} characters"
            + (f", {len(document.pages):,} pages" if document.pages else "")
            for document in desk.documents
        ]
        read = {document.path for document in desk.documents}
        lines += [
            f"{Path(path).name}  "
            + ("cannot be read" if path == desk.unreadable else "not read yet")
            for path in desk.paths
            if path not in read
        ]
        self._screen.note("\n".join(lines) or "no documents; /file PATH adds one")

    def drop(self, argument: str) -> None:
        desk = self._screen.desk
        paths = list(desk.paths)
        if not paths:
            raise UsageError("there is no document to drop")
        known = {document.path: document.name for document in desk.documents}
        names = [known.get(path, Path(path).name) for path in paths]
        if argument and argument not in names:
            near = difflib.get_close_matches(argument, names, n=1)
            hint = f"did you mean {near[0]}?" if near else "/docs lists them"
            raise UsageError(f"there is no document {argument}; {hint}")
        del paths[names.index(argument) if argument else -1]
        self._screen.set_documents(paths)

    def source(self, argument: str) -> None:
        answers = [answer for answer in self._screen.log_view.answers if answer.sources]
        if answers:
            self.show_source(answers[-1], number(argument, "source"))
        elif self._screen.desk.documents:
            self._show_text((), 0)
        else:
            raise UsageError("there is no document to show; /file PATH adds one")

    def show_source(self, answer: Answer, which: int) -> None:
        """Opens the passage, counted from 1, that an answer was read from."""
        if which > len(answer.sources):
            raise UsageError(f"the answer was read from {len(answer.sources)} passages")
        self._show_text(answer.sources, which - 1)

    def _show_text(self, sources: Sequence[Source], which: int) -> None:
        # Only here: it needs numpy, for which the first screen would wait.
        from .source_view import SourceScreen

        documents = self._screen.desk.documents
        self._screen.app.push_screen(SourceScreen(documents, sources, which, self._screen.copy))

    def copy(self, argument: str) -> None:
        answers = self._screen.log_view.answers
        which = number(argument, "copy")
        if which > len(answers):
            raise UsageError(f"there are {len(answers)} answers to copy")
        self._screen.copy(answers[-which].text)

    def code(self, argument: str) -> None:
        answers = self._screen.log_view.answers
        blocks = answers[-1].prose.code_blocks if answers else []
        which = number(argument, "code") if argument else len(blocks)
        if not 1 <= which <= len(blocks):
            raise UsageError(f"the last answer has {len(blocks)} code blocks")
        self._screen.copy(blocks[which - 1])

    def edit(self, argument: str) -> None:
        question = self._last_question()
        if question is None:
            raise UsageError("there is no question to edit")
        self.edit_question(question)

    def edit_question(self, question: Question) -> None:
        """Puts the last question into the prompt; sent again it replaces what stands there."""
        if question is not self._last_question():
            raise UsageError("only the last question can be edited; /new begins anew")
        self._screen.desk.require_rest()
        self._screen.editing.begin(question, self._screen.prompt, self._screen.log_view)
        self._screen.focus_prompt()

    def retry(self, argument: str) -> None:
        answers = self._screen.log_view.answers
        if not answers:
            raise UsageError("there is no answer to ask for again")
        self.retry_answer(answers[-1])

    def retry_answer(self, answer: Answer) -> None:
        """Asks the last question again."""
        question = self._last_question()
        if question is None or answer is not self._screen.log_view.answers[-1]:
            raise UsageError("only the last answer can be asked for again")
        if self._screen.desk.take_back() is not None:
            self._screen.remove_from(question)
            self._screen.ask(question.text)
        self._screen.focus_prompt()

    def set(self, argument: str) -> None:
        settings, value, given = answering.parse(argument)
        desk = self._screen.desk
        if given:
            desk.changes[settings[0].field] = value
        known = {} if desk.model is None else desk.model.answering
        self._screen.note(answering.listed(settings, {**known, **desk.changes}))

    def new(self, argument: str) -> None:
        self._screen.desk.change_to((), old=self._cache())
        self._saved, self._written = None, ()
        self._screen.show_turns(())

    def chats(self, argument: str) -> None:
        chats = self.store.list()
        if not chats:
            raise UsageError("no chat was kept yet")
        opened = lambda chat_id: self._screen.guarded(lambda: self._open_chat(chat_id))  # noqa: E731
        self._screen.app.push_screen(ChatsScreen(self.store, chats, self._deleted), opened)

    def rename(self, argument: str) -> None:
        if not self._screen.settings.keeps_chats:
            raise UsageError("chats cannot be kept here; /export PATH writes this one to a file")
        if self._saved is None:
            raise UsageError("this chat has no answer yet; it is named by its first question")
        self._saved = self.store.rename(self._saved, argument)
        self._screen.flash(f"the chat is now called {self._saved.title}")

    def export(self, argument: str) -> None:
        chat = self._current(None)
        if chat is None:
            raise UsageError("this chat has no answer yet; there is nothing to export")
        name = "".join(c if c.isalnum() or c in "-_ " else "" for c in chat.title)[:40].strip()
        path = Path(argument or f"{name.replace(' ', '-') or 'chat'}.md").expanduser()
        if path.exists():
            raise UsageError(f"{path} exists; give another name: /export PATH")
        try:
            write_private(path, as_markdown(chat))
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror})") from error
        self._screen.flash(f"written to {path}")

    def stats(self, argument: str) -> None:
        lines = [line.plain for line in self._screen.panel.figures()]
        self._screen.note("\n".join(lines) or "nothing was measured yet")

    def theme(self, argument: str) -> None:
        app = self._screen.app
        if not argument:
            app.search_themes()
            return
        if argument not in app.available_themes:
            near = difflib.get_close_matches(argument, app.available_themes, n=1)
            hint = f"did you mean {near[0]}?" if near else "/theme lists them"
            raise UsageError(f"there is no theme {argument}; {hint}")
        app.theme = argument

    def log(self, argument: str) -> None:
        log = self._screen.state / "chat.log"
        kept = self._screen.settings.keeps_log
        self._screen.note(f"the log is {log}" if kept else f"there is no log: {log} is not kept")

    def help(self, argument: str) -> None:
        self._screen.app.push_screen(HelpScreen())

    def quit(self, argument: str) -> None:
        self._screen.app.run_worker(self._screen.app.action_quit())

    def keep(self, partial: Turn | None = None) -> Path | None:
        """Saves the chat as it is; says so when that fails.

        Returns where what the caches hold of it belongs; None when no chat is to be kept.
        """
        chat = self._current(partial)
        if chat is None or not self._screen.settings.keeps_chats:
            return None
        known = () if self._saved is None else self._saved.documents
        if chat.turns != self._written or not set(chat.documents) <= set(known):
            try:
                self._saved = self.store.save(chat)
            except DataError as error:
                self._screen.not_kept(error)
                return None
            self._written = chat.turns
        return self._cache()

    def keeping_asked(self) -> Callable[[], None]:
        """Saves the chat with the question that is asked now, on whatever thread it is called.

        Who kills the program finds the question again. That it could not be saved is said when its
        answer cannot be, either.
        """
        chat, store = self._current(self._screen.desk.partial), self.store
        if chat is None or not self._screen.settings.keeps_chats:
            return lambda: None
        self._saved, self._written = chat, chat.turns

        def save() -> None:
            with suppress(DataError):
                store.save(chat)

        return save

    def forget_asked(self) -> None:
        """The question became no part of the conversation."""
        chat = self._current(None)
        if self._saved is None:
            # It was deleted meanwhile, and has not gone on.
            self._written = () if chat is None else chat.turns
        elif chat is not None:
            self.keep()
        else:
            with suppress(DataError):
                self.store.delete(self._saved.id)
            self._saved, self._written = None, ()

    def _cache(self) -> Path | None:
        if self._saved is None or not self._screen.settings.keeps_chats:
            return None
        return self.store.cache_of(self._saved.id)

    def _deleted(self, chat_id: str) -> None:
        """The chat that is open is kept again only when it has gone on."""
        if self._saved is not None and self._saved.id == chat_id:
            self._saved = None

    def _current(self, partial: Turn | None) -> Chat | None:
        """The chat as it stands; None without an answer."""
        desk = self._screen.desk
        turns = [*desk.turns, *([partial] if partial is not None else [])]
        if not turns or desk.model is None:
            return None
        paths = tuple(place_of(document.path) for document in desk.documents)
        chat = self._saved or self.store.new(desk.model.model, paths, turns[0].question)
        kept = [ChatTurn(t.question, t.answer, t.stop_reason, t.sources) for t in turns]
        return chat.going_on(desk.model.model, paths, kept)

    def _open_chat(self, chat_id: str | None) -> None:
        """Goes on with an earlier chat, about the documents it was about."""
        if chat_id is None:
            return
        desk = self._screen.desk
        chat = self.store.load(chat_id)
        answered, asked = chat.turns, None
        if answered and not answered[-1].answer and answered[-1].stop_reason == "interrupted":
            # The program was killed before there was an answer: it is asked again, or not at all.
            answered, asked = answered[:-1], answered[-1].question
        turns = [Turn(t.question, t.answer, t.stop_reason, t.sources) for t in answered]
        here = tuple(place_of(document.path) for document in desk.documents)
        files = [path for path in chat.documents if not path.startswith(CORPUS)]
        missing = [path for path in files if not Path(path).exists()]
        if chat.documents != here and missing:
            raise DocumentError(
                f"{one_line(missing[0], 60)}, which the chat was about, is not there any more"
            )
        desk.change_to(
            turns,
            documents=chat.documents,
            old=self._cache(),
            kept=self.store.cache_of(chat_id),
        )
        self._saved, self._written = chat, answered
        self._screen.show_turns(turns)
        if asked is not None and not self._screen.prompt.text:
            self._screen.prompt.set_text(asked)
            self._screen.flash("the last question has no answer yet: Enter asks it again")

    def _last_question(self) -> Question | None:
        if not self._screen.desk.turns and self._screen.desk.at_rest:
            return None
        questions = [q for q in self._screen.log_view.questions if q.fate == "sent"]
        return questions[-1] if questions else None
