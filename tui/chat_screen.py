"""The chat: shows what the desk tells, passes on what keys, clicks and commands want.

What a command does stands in `chat_commands`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from ..errors import RetrolocalError
from . import slash
from .answer import Answer, Question
from .bridge import Arrival, Bridge
from .cards import Card, error_card, text_of
from .chat_commands import ChatCommands
from .chat_log import ChatLog
from .desk import Desk, Ticket
from .editing import Editing
from .engine import (
    Advanced,
    Began,
    ChatSettings,
    DocumentFacts,
    Download,
    Engine,
    Measured,
    Opened,
    Turn,
)
from .engine import (
    Answer as FinishedAnswer,
)
from .foreign import one_line, visible
from .host import Host
from .message_view import MessageView
from .model_picker import DownloadCard
from .opening import Opening
from .prompt_bar import PromptBar
from .prompt_history import PromptHistory
from .side_panel import SidePanel
from .status_bar import StatusBar, key_line

_REMARKS = {"interrupted": "stopped", "length": "cut off: the limit of tokens was reached"}


class ChatScreen(Screen[None]):
    """One conversation; satisfies `DeskView`."""

    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (40, "-narrow"), (100, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-flat"), (10, "-short"), (20, "-tall")]
    AUTO_FOCUS = "#prompt"
    BINDINGS = [
        Binding("escape", "escape", "stop", priority=True),
        Binding("f1", "help", "help"),
        Binding("f2", "panel", "panel"),
        Binding("f3", "source", "source"),
        Binding("f4", "chats", "chats"),
        Binding("alt+up", "message(-1)", "choose a message", priority=True),
        Binding("alt+down", "message(1)", "choose a message", priority=True),
        Binding("pageup", "scroll(-1)", "scroll", priority=True),
        Binding("pagedown", "scroll(1)", "scroll", priority=True),
        Binding("ctrl+end", "follow", "follow the end", priority=True),
        Binding("ctrl+l", "redraw", "draw again", priority=True),
    ]

    class EngineTold(Message):
        """The engine's thread has said something."""

        def __init__(self, arrivals: Sequence[Arrival]) -> None:
            super().__init__()
            self.arrivals = arrivals

    def __init__(self, engine: Engine, settings: ChatSettings, host: Host) -> None:
        super().__init__()
        self._host = host
        self._settings = settings
        self._engine = engine
        self._tickets: dict[Ticket, Question] = {}
        self._live: Answer | None = None
        self._retry: Callable[[], None] | None = None
        self._failure: Card | None = None
        """Says why there is something to be tried again."""
        self._desk: Desk | None = None
        self._opening: Opening | None = None
        self.commands = ChatCommands(self)
        self.editing = Editing()

    def compose(self) -> ComposeResult:
        clock, files = self._host.clock, self._settings.documents
        self._desk = Desk(self._engine, self, clock=clock, files=files)
        yield Static(id="title", markup=False)
        with Horizontal(id="middle"):
            yield ChatLog()
            yield SidePanel(self._host.clock)
        yield StatusBar(self.desk.activity, self._host.clock)
        history = PromptHistory(self.state / "history.jsonl")
        yield PromptBar(slash.complete, history.entries(), history.add)
        yield Static(key_line(), id="keys", markup=False)
        yield Static("The terminal is too small:\nat least 40 x 10 is needed", id="too-small")

    def on_mount(self) -> None:
        self.prompt.set_hint("Ask a question …  (/ for commands)")
        for note in self._settings.notes:
            self.note(note)
        self._show_title()
        # What the engine imports would be waited for by the first screen.
        self.call_after_refresh(self.desk.start)

    @property
    def desk(self) -> Desk:
        assert self._desk is not None, "the screen is composed"
        return self._desk

    def end_engine(self) -> Bridge | None:
        """Ends the engine's work; its bridge is there to be waited for."""
        return None if self._desk is None else self._desk.close()

    @property
    def state(self) -> Path:
        return self._host.state

    @property
    def settings(self) -> ChatSettings:
        return self._settings

    @property
    def corpus(self) -> str | None:
        """Whose documents the conversation began with."""
        return self._settings.corpus

    @property
    def log_view(self) -> ChatLog:
        return self.query_one(ChatLog)

    @property
    def prompt(self) -> PromptBar:
        return self.query_one(PromptBar)

    @property
    def status(self) -> StatusBar:
        return self.query_one(StatusBar)

    @property
    def panel(self) -> SidePanel:
        return self.query_one(SidePanel)

    def note(self, text: str) -> None:
        """A remark in the conversation."""
        self.log_view.add(Static(Content(visible(text)), classes="note", markup=False))

    def flash(self, text: str) -> None:
        """A remark that goes away."""
        self.status.flash(one_line(text, 200))

    def refuse(self, error: RetrolocalError) -> None:
        """Why something cannot be done now; goes away with what stands in its way."""
        self.status.flash(one_line(str(error), 200), passing=True)

    def copy(self, text: str) -> None:
        """Copies a text; the application says how."""
        self._host.copy(text)

    def show_turns(self, turns: Sequence[Turn]) -> None:
        """Shows another conversation."""
        hides = self._settings.hides_thinking
        views: list[MessageView] = []
        for turn in turns:
            remark = _REMARKS.get(turn.stop_reason, "")
            answer = Answer(turn.answer, remark=remark, sources=turn.sources, hides_thinking=hides)
            views += (Question(turn.question), answer)
        self.editing.gone(self.prompt)
        self.log_view.show(views, self._still_needed())

    def _still_needed(self) -> list[Widget]:
        """What is said about opening the model, whatever the conversation."""
        needed: list[Widget] = []
        if self._opening is not None and self._opening.goes_on:
            needed.append(self._opening)
        else:
            self._opening = None
        if self.desk.activity.phase in ("consent", "failed"):
            needed += self.log_view.query(Card)
        return needed

    def remove_from(self, question: Question) -> None:
        """Takes a question and everything after it off the screen."""
        self.editing.gone(self.prompt)
        children = list(self.log_view.children)
        for child in children[children.index(question) :]:
            child.remove()

    def ask(self, text: str, shown: str | None = None) -> None:
        """Puts a question into the conversation and on its way."""
        shown = text if shown is None else shown
        ticket = Ticket(text, shown)
        question = Question(text, shown=shown, fate="queued")
        self._tickets[ticket] = question
        self.log_view.add(question)
        self.log_view.follow()
        self.desk.send(ticket)

    # What the desk tells.

    def pass_on(self, arrivals: Sequence[Arrival]) -> None:
        self.post_message(self.EngineTold(arrivals))

    @on(EngineTold)
    def engine_told(self, message: EngineTold) -> None:
        began = time.thread_time()
        self.desk.deliver(message.arrivals)
        self.call_after_refresh(lambda: self.desk.shown(time.thread_time() - began))

    def opened(self, opened: Opened) -> None:
        for note in opened.notes:
            self.note(note)
        self.panel.opened(opened)
        self._show_title()

    def download_needed(self, download: Download) -> None:
        card = DownloadCard(download)
        self.log_view.add(card)
        card.focus()

    def documents_changed(self, documents: Sequence[DocumentFacts]) -> None:
        for note in (f"{d.name}: {note}" for d in documents for note in d.notes):
            self.note(note)
        self.panel.documents_changed(documents)
        self._show_title()

    def measured(self, measured: Measured) -> None:
        self.panel.measured(measured)
        cache, model = measured.cache, self.desk.model
        if cache is None or model is None:
            self.status.extra = ""
        else:
            self.status.extra = f"{cache.tokens:,} of {model.max_tokens:,} tokens"

    def stage_began(self, event: Began) -> None:
        self._opening_card().began(event, self._host.clock())

    def stage_advanced(self, event: Advanced) -> None:
        self._opening_card().advanced(event, self._host.clock())

    def at_rest(self) -> None:
        if self._opening is not None:
            self._opening.end(self._host.clock())

    def paused(self) -> None:
        if self._opening is not None:
            self._opening.pause(self._host.clock())

    def withdrawn(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            self._tickets.pop(ticket).remove()
        # Back to where they were typed: asked in another chat they would mean something else.
        typed = [ticket.shown for ticket in tickets] + [self.prompt.text]
        self.prompt.set_text("\n".join(filter(None, typed)))

    def sent(self, ticket: Ticket) -> Callable[[], None]:
        question = self._tickets[ticket]
        question.fate = "sent"
        self._opening = None
        self._live = Answer(hides_thinking=self._settings.hides_thinking)
        self.log_view.mount(self._live, after=question)
        return self.commands.keeping_asked()

    def wrote(self, text: str) -> None:
        if self._live is not None:
            self._live.append(text)

    def answered(self, answer: FinishedAnswer) -> None:
        if self._live is not None:
            self._live.finish(answer, _REMARKS.get(answer.stop_reason, ""))
        self._live = None
        self.panel.answered(answer)
        self.log_view.fold()
        self.commands.keep()

    def unanswered(self, ticket: Ticket) -> None:
        if self._live is not None:
            self._live.remove()
        self._live = None
        self._tickets[ticket].fate = "unanswered"
        self.commands.forget_asked()

    def failed(self, error: BaseException, retry: Callable[[], None] | None) -> None:
        if self._opening is not None:
            self._opening.fail(self._host.clock())
            self._opening = None
        self._retry = retry
        card = error_card(error, retry=retry is not None, file=self.desk.unreadable)
        self._failure = card if retry is not None else None
        self.log_view.add(card)
        self.log_view.follow()
        if not self.prompt.text:
            card.focus()

    def not_kept(self, error: BaseException) -> None:
        line = text_of(error)
        self.flash(line)
        if self.desk.activity.leaving:
            self._host.say_at_the_end(line)

    def not_reopened(self) -> None:
        self.note("Only the text of this chat was kept: the next question reads it again.")

    def activity_changed(self) -> None:
        if self.is_mounted:
            self.status.show()
            self.panel.activity(self.desk.activity)

    # What the user wants.

    @on(PromptBar.Submitted)
    def submitted(self, message: PromptBar.Submitted) -> None:
        if not message.text:
            self.desk.resume()
            return
        try:
            command = slash.parse(message.text)
            if command is None:
                self._send(slash.question_of(message.text), slash.question_of(message.shown))
            else:
                self.commands.run(*command)
        except RetrolocalError as error:
            self.refuse(error)
            self.prompt.set_text(message.shown)
            if message.text.startswith("/"):
                self.prompt.area.select_all()

    def _send(self, text: str, shown: str) -> None:
        edited = self.editing.question
        if edited is not None:
            self.desk.take_back()
            self.remove_from(edited)
        self.ask(text, shown)

    def leave_editing(self) -> bool:
        """Keeps the question that is edited, and its answer; False when none is."""
        return self.editing.leave(self.prompt, self.log_view)

    @on(Card.Chosen)
    def card_chosen(self, message: Card.Chosen) -> None:
        match message.key:
            case "r" if self._retry is not None:
                retry = self._retry
                self._close_failure()
                retry()
            case "d":
                unreadable = self.desk.unreadable
                paths = [path for path in self.desk.paths if path != unreadable]
                self.guarded(lambda: self.set_documents(paths))
            case "c":
                self.copy(message.card.text)
            case "l":
                self.commands.log("")
            case "y":
                message.card.remove()
                self.focus_prompt()
                self.desk.start(download=True)
            case "n":
                self._host.leave()

    def set_documents(self, paths: Sequence[str]) -> None:
        """The conversation is about these files; what failed for others is done with."""
        self.desk.set_documents(paths)
        self._close_failure()

    def _close_failure(self) -> None:
        if self._failure is not None:
            self._failure.remove()
            self.focus_prompt()
        self._failure = self._retry = None

    @on(Card.Typed)
    def card_typed(self, message: Card.Typed) -> None:
        self.focus_prompt()
        self.prompt.area.insert(message.character)

    @on(Question.EditRequested)
    def edit_requested(self, message: Question.EditRequested) -> None:
        self.guarded(lambda: self.commands.edit_question(message.question))

    @on(Question.WrongKey)
    def wrong_key(self, message: Question.WrongKey) -> None:
        self.flash(message.hint)

    @on(Answer.RetryRequested)
    def retry_requested(self, message: Answer.RetryRequested) -> None:
        self.guarded(lambda: self.commands.retry_answer(message.answer))

    @on(Question.CopyRequested)
    def copy_requested(self, message: Question.CopyRequested) -> None:
        self.copy(message.text)

    @on(Answer.SourceRequested)
    def source_requested(self, message: Answer.SourceRequested) -> None:
        self.commands.show_source(message.answer, message.number)

    def on_resize(self) -> None:
        # What does not fit is hidden and loses the focus.
        if self.focused is None and self.is_current:
            self.call_after_refresh(self.focus_prompt)

    def focus_prompt(self) -> None:
        self.prompt.area.focus()

    def action_escape(self) -> None:
        """Closes what is open, else stops what runs, else does nothing."""
        if self.desk.activity.leaving:
            self._host.leave()
        elif isinstance(self.focused, MessageView):
            if isinstance(self.focused, Card) and not isinstance(self.focused, DownloadCard):
                self.focused.remove()
            self.focus_prompt()
        elif self.has_class("-panel"):
            self.remove_class("-panel")
        elif not self.leave_editing() and not self.desk.stop():
            self.clear_selection()

    def run_command(self, command: slash.Command) -> None:
        """Runs a command without an argument, from the palette."""
        self.guarded(lambda: self.commands.run(command, ""))

    def action_help(self) -> None:
        self.commands.help("")

    def action_panel(self) -> None:
        self.toggle_class("-no-panel" if self.has_class("-wide") else "-panel")

    def action_source(self) -> None:
        self.guarded(lambda: self.commands.source(""))

    def action_chats(self) -> None:
        self.guarded(lambda: self.commands.chats(""))

    def action_message(self, step: int) -> None:
        """Chooses the message before or after; past the last one the prompt."""
        view = self.log_view.neighbour(self.focused, step)
        if view is not None:
            view.focus()
        elif step > 0:
            self.focus_prompt()

    def action_scroll(self, pages: int) -> None:
        if pages < 0:
            self.log_view.release_anchor()
            self.log_view.scroll_page_up(animate=False)
        else:
            self.log_view.scroll_page_down(animate=False)

    def action_follow(self) -> None:
        self.log_view.follow()

    def action_redraw(self) -> None:
        self._host.clear_and_redraw()

    def _opening_card(self) -> Opening:
        """The list of stages; a new one behind everything when the last one is done with."""
        if self._opening is None:
            self._opening = Opening()
            self.log_view.add(self._opening)
        return self._opening

    def guarded(self, what: Callable[[], None]) -> None:
        """Does something; says in one line why it cannot be done."""
        try:
            what()
        except RetrolocalError as error:
            self.refuse(error)

    def _show_title(self) -> None:
        model = self._settings.model if self.desk.model is None else self.desk.model.model
        names = [one.name for one in self.desk.documents]
        names = names or [Path(path).name for path in self.desk.paths]
        about = f"   {one_line(names[0], 40)}" if names else ""
        more = f" +{len(names) - 1}" if len(names) > 1 else ""
        title = Content.assemble(
            " ", ("retrolocal", "bold $text-primary"), f"   {one_line(model, 40)}", about, more
        )
        self.query_one("#title", Static).update(title)
