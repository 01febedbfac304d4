"""Where questions are typed: several lines, history, pasted text as a chip, completion.

Enter sends; Ctrl+J begins a new line, and so do Alt+Enter and Shift+Enter in terminals that tell
them from Enter. A long paste stands in the prompt as a chip and is sent as its whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static, TextArea

CHIP_CHARACTERS = 2000
"""A paste longer than this becomes a chip."""
COMPLETIONS_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Completion:
    """One way to go on."""

    text: str
    """The whole prompt after it is taken."""
    label: str
    hint: str = ""


Completer = Callable[[str], Sequence[Completion]]
LINE_BREAKS = ("ctrl+j", "alt+enter", "shift+enter")


class PromptInput(TextArea):
    """The text area itself."""

    class KeyWanted(Message):
        """A key that means something else at this place; the bar decides."""

    class Submitted(Message):
        pass

    class HistoryWanted(Message):
        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    class ChoiceWanted(Message):
        """Another completion is to be marked (`step`) or the marked one taken (0)."""

        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    class Pasted(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self) -> None:
        super().__init__(
            soft_wrap=True, show_line_numbers=False, tab_behavior="focus", compact=True, id="prompt"
        )
        self.cursor_blink = False
        self.completing = False

    def on_key(self, event: events.Key) -> None:
        row, _ = self.cursor_location
        last = self.document.line_count - 1
        if event.key == "enter":
            self._instead(event, self.Submitted())
        elif event.key in LINE_BREAKS:
            # Here, not as a binding: that would come after what was typed behind it.
            event.prevent_default()
            event.stop()
            self._break_line()
        elif self.completing and event.key in ("up", "down", "tab"):
            step = {"up": -1, "down": 1, "tab": 0}[event.key]
            self._instead(event, self.ChoiceWanted(step))
        elif (event.key == "up" and row == 0) or (event.key == "down" and row == last):
            self._instead(event, self.HistoryWanted(-1 if event.key == "up" else 1))

    def on_paste(self, event: events.Paste) -> None:
        if len(event.text) > CHIP_CHARACTERS:
            event.prevent_default()
            event.stop()
            self.post_message(self.Pasted(event.text))

    def _break_line(self) -> None:
        # A key that was pressed before the screen was there ends up as an empty first line.
        if self.text:
            self.insert("\n")

    def _instead(self, event: events.Key, message: Message) -> None:
        event.prevent_default()
        event.stop()
        self.post_message(message)

    def _recompute_cursor_offset(self) -> None:
        # Undo can leave the cursor beyond the wrapped document for a moment, which ends the
        # application (textual #6686); the next edit or movement computes it anyway.
        if self.cursor_location[0] < self.document.line_count:
            try:
                super()._recompute_cursor_offset()  # type: ignore[no-untyped-call]
            except ValueError:
                return


class PromptBar(Vertical):
    """The text area with its completions above it."""

    class Submitted(Message):
        """A question or command was entered."""

        def __init__(self, text: str, shown: str) -> None:
            super().__init__()
            self.text = text
            """With pasted texts in place of their chips."""
            self.shown = shown

    def __init__(
        self,
        completer: Completer,
        history: Sequence[str] = (),
        remember: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__()
        self.history = list(history)
        self._remember = remember
        self._completer = completer
        self._completions: Sequence[Completion] = ()
        self._marked = 0
        self._place: int | None = None
        self._draft = ""
        self._chips: dict[str, str] = {}

    def compose(self) -> ComposeResult:
        yield Static(id="completions", markup=False)
        yield Static(id="notice", markup=False)
        yield PromptInput()

    @property
    def area(self) -> PromptInput:
        return self.query_one(PromptInput)

    @property
    def text(self) -> str:
        return self.area.text

    def set_text(self, text: str) -> None:
        """Replaces what is typed; the cursor goes to its end."""
        self.area.text = text
        self.area.move_cursor(self.area.document.end)

    def set_hint(self, hint: str) -> None:
        """What stands in the empty prompt."""
        self.area.placeholder = Content(hint)

    def set_notice(self, text: str) -> None:
        """A line above the prompt; none when there is nothing to say."""
        notice = self.query_one("#notice", Static)
        notice.update(Content(text))
        notice.display = bool(text)

    def on_prompt_input_submitted(self, message: PromptInput.Submitted) -> None:
        message.stop()
        shown = self.text
        if not shown.strip():
            self.post_message(self.Submitted("", ""))
            return
        text = shown
        for chip, pasted in self._chips.items():
            text = text.replace(chip, pasted)
        if not self.history or self.history[-1] != shown:
            self.history.append(shown)
            self._remember(text)
        self._place = None
        self.area.text = ""
        self.post_message(self.Submitted(text, shown))

    def on_prompt_input_history_wanted(self, message: PromptInput.HistoryWanted) -> None:
        message.stop()
        if not self.history:
            return
        if self._place is None:
            if message.step > 0:
                return
            self._draft, self._place = self.text, len(self.history)
        place = max(0, self._place + message.step)
        if place >= len(self.history):
            self._place = None
            self.set_text(self._draft)
        else:
            self._place = place
            self.set_text(self.history[place])

    def on_prompt_input_pasted(self, message: PromptInput.Pasted) -> None:
        message.stop()
        chip = f"[pasted text {len(self._chips) + 1}, {len(message.text):,} characters]"
        self._chips[chip] = message.text
        self.area.insert(chip)

    def on_prompt_input_choice_wanted(self, message: PromptInput.ChoiceWanted) -> None:
        message.stop()
        if message.step == 0:
            self.set_text(self._completions[self._marked].text)
            return
        self._marked = (self._marked + message.step) % len(self._completions)
        self._show_completions()

    def on_text_area_changed(self, message: TextArea.Changed) -> None:
        message.stop()
        found = self._completer(self.text) if "\n" not in self.text else ()
        self._completions = [one for one in found if one.text != self.text]
        self._marked = 0
        self._show_completions()

    def _show_completions(self) -> None:
        self.area.completing = bool(self._completions)
        popup = self.query_one("#completions", Static)
        popup.display = bool(self._completions)
        first = max(0, self._marked - COMPLETIONS_SHOWN + 1)
        shown = self._completions[first : first + COMPLETIONS_SHOWN]
        popup.update(
            Content("\n").join(
                Content.assemble(
                    (f" {one.label:<16}", "reverse" if first + n == self._marked else ""),
                    (f" {one.hint}", "$text-muted"),
                )
                for n, one in enumerate(shown)
            )
        )
