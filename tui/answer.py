"""Questions and answers as they stand in the conversation.

An answer is one widget while it is written and afterwards. Its text is Markdown, a question is
taken as it was typed. What others wrote is never markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from textual.binding import Binding
from textual.content import Content, Span
from textual.message import Message
from textual.style import Style

from ..thinking import CLOSE, OPEN, Part, Thinking
from .engine import Answer as FinishedAnswer
from .engine import Source
from .foreign import one_line, visible
from .message_view import MessageView
from .prose import Prose

Fate = Literal["queued", "sent", "unanswered"]
_BAR = " ▏▎▍▌▋▊▉█"


class Question(MessageView):
    """What the user asked."""

    BINDINGS = [
        Binding("e", "edit", "edit"),
        Binding("y", "copy", "copy"),
        Binding("r", "retry", show=False),
    ]

    class EditRequested(Message):
        def __init__(self, question: Question) -> None:
            super().__init__()
            self.question = question

    class WrongKey(Message):
        """A key that does nothing here."""

        def __init__(self, hint: str) -> None:
            super().__init__()
            self.hint = hint
            """Which key does something, and where."""

    class CopyRequested(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, text: str, *, shown: str | None = None, fate: Fate = "sent") -> None:
        super().__init__()
        self.text = text
        """What the model is asked."""
        self._content = Content(visible(text if shown is None else shown))
        self._fate = fate
        self._cache: tuple[int, list[Content]] | None = None

    @property
    def fate(self) -> Fate:
        return self._fate

    @fate.setter
    def fate(self, fate: Fate) -> None:
        self._fate = fate
        self._cache = None
        self.set_class(fate == "queued", "-queued")
        self.changed()

    def rows(self, width: int) -> Sequence[Content]:
        if self._cache is None or self._cache[0] != width:
            remark = {"sent": "", "queued": "  queued", "unanswered": "  not answered"}[self._fate]
            title = Content.assemble(
                ("you", "bold $text-secondary"), (remark, "italic $text-muted")
            )
            self._cache = width, [title, *self._content.wrap(max(4, width))]
        return self._cache[1]

    def action_edit(self) -> None:
        self.post_message(self.EditRequested(self))

    def action_copy(self) -> None:
        self.post_message(self.CopyRequested(self.text))

    def action_retry(self) -> None:
        self.post_message(self.WrongKey("r works on an answer (Alt+Down); e edits this question"))


class Answer(MessageView):
    """What the model answered; `append` while it is written, then `finish` once."""

    BINDINGS = [
        Binding("y", "copy", "copy"),
        Binding("r", "retry", "retry"),
        Binding("c", "copy_code", "copy code"),
        Binding("e", "edit", show=False),
        *(Binding(str(n), f"cite({n})", show=False) for n in range(1, 10)),
    ]

    class RetryRequested(Message):
        def __init__(self, answer: Answer) -> None:
            super().__init__()
            self.answer = answer

    class SourceRequested(Message):
        """A passage is to be shown."""

        def __init__(self, answer: Answer, number: int) -> None:
            super().__init__()
            self.answer = answer
            self.number = number
            """Counted from 1."""

    def __init__(
        self,
        text: str = "",
        *,
        remark: str = "",
        sources: tuple[Source, ...] = (),
        hides_thinking: bool = False,
    ) -> None:
        super().__init__()
        self.prose = Prose()
        self.thoughts = Prose()
        """What the model thought before it answered."""
        self._hides_thinking = hides_thinking
        self._thinking = Thinking()
        if text:
            self._take([*self._thinking.push(text), *self._thinking.finish()])
            self.prose.finish()
        self.sources = sources
        self._remark = remark
        self._footer: tuple[int, list[Content]] | None = None

    @property
    def text(self) -> str:
        """The answer as Markdown, without what was thought."""
        return self.prose.source

    def append(self, piece: str) -> None:
        width = self.content_size.width
        before = self._height(width) if width else 0
        self._take(self._thinking.push(piece))
        # Arranging hundreds of messages anew costs more than all the rest.
        if width and self._height(width) == before:
            self.refresh()
        else:
            self.changed()

    def finish(self, answer: FinishedAnswer | None, remark: str = "") -> None:
        """No more text comes; `remark` says so where that was not the model's decision."""
        self._take(self._thinking.finish())
        self.prose.finish()
        if answer is not None:
            self.sources = answer.sources
            self._remark = " · ".join(part for part in (remark, figures(answer)) if part)
        else:
            self._remark = remark
        self._footer = None
        self.changed()

    def rows(self, width: int) -> Sequence[Content]:
        above, lines = self._thought_rows(width), self.prose.lines(width)
        between = [Content("")] if above and lines else []
        return _Joined([_TITLE], above, between, lines, self._footer_rows(width))

    def _take(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if not part.thinking:
                self.prose.append(part.text)
            elif part.text.strip() != OPEN:
                self.thoughts.append(part.text.removesuffix(CLOSE))

    def _height(self, width: int) -> int:
        return len(self._thought_rows(width)) + len(self.prose.lines(width))

    def _thought_rows(self, width: int) -> Sequence[Content]:
        lines = self.thoughts.lines(width)
        if self._hides_thinking and lines:
            return [Content.styled("thinking …" if self._thinking.inside else "thought", _THOUGHT)]
        return _Dimmed(lines)

    def _footer_rows(self, width: int) -> list[Content]:
        if self._footer is None or self._footer[0] != width:
            rows = []
            if self.sources:
                rows = [Content(""), *read_from(self.sources).wrap(max(4, width))]
            if self._remark:
                rows += Content.styled(self._remark, "$text-muted").wrap(max(4, width))
            self._footer = width, rows
        return self._footer[1]

    def action_copy(self) -> None:
        self.post_message(Question.CopyRequested(self.text))

    def action_copy_code(self) -> None:
        code = self.prose.code_blocks
        self.post_message(Question.CopyRequested(code[-1] if code else ""))

    def action_retry(self) -> None:
        self.post_message(self.RetryRequested(self))

    def action_edit(self) -> None:
        hint = "e works on a question (Alt+Up); r asks for this answer again"
        self.post_message(Question.WrongKey(hint))

    def action_cite(self, number: int) -> None:
        if number <= len(self.sources):
            self.post_message(self.SourceRequested(self, number))


_THOUGHT = "dim italic"
_TITLE = Content.styled("retrolocal", "bold $text-primary")


class _Dimmed(Sequence[Content]):
    """Lines that grow in place, each dimmed when it is drawn."""

    def __init__(self, lines: list[Content]) -> None:
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, at):  # type: ignore[no-untyped-def]
        if isinstance(at, slice):
            return [line.stylize(_THOUGHT) for line in self._lines[at]]
        return self._lines[at].stylize(_THOUGHT)


class _Joined(Sequence[Content]):
    """Several sequences of lines, some of which grow in place, as one, without copying."""

    def __init__(self, *parts: Sequence[Content]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, at):  # type: ignore[no-untyped-def]
        if isinstance(at, slice):
            return [self[n] for n in range(*at.indices(len(self)))]
        at = at + len(self) if at < 0 else at
        for rows in self._parts:
            if at < len(rows):
                return rows[at]
            at -= len(rows)
        raise IndexError(at)


def read_from(sources: Sequence[Source]) -> Content:
    """`read from  1 p.176 ████  2 p.178 ██▌`, each opened by a click.

    Of passages from several documents each has the name of its own.
    """
    parts: list[Content] = [Content.styled("read from", "$text-muted")]
    most = max(source.mass for source in sources) or 1.0
    several = len({source.document for source in sources}) > 1
    for number, source in enumerate(sources, 1):
        named = several or source.page is None
        where = " ".join(
            [one_line(source.document, 20)] * named
            + ([f"p.{source.page}"] if source.page is not None else [])
        )
        label = f"  {number} {where} {bar(source.mass / most, 4)}"
        click = Style.from_meta({"@click": f"cite({number})"})
        parts.append(
            Content(label, spans=[Span(2, len(label), click), Span(2, 3, "bold $text-accent")])
        )
    return Content("").join(parts)


def bar(share: float, width: int) -> str:
    """A bar of at most `width` cells, in eighths; a share above 0 is never nothing."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    eighths = max(eighths, 1 if share > 0 else 0)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_BAR[rest] if rest else "")


def figures(answer: FinishedAnswer) -> str:
    """`212 tokens · 18.4 tok/s · first token 0.9 s`."""
    parts = [f"{answer.generated_tokens:,} tokens"]
    if answer.tokens_per_second:
        parts.append(f"{answer.tokens_per_second:.1f} tok/s")
    parts.append(f"first token {answer.prefill_seconds:.1f} s")
    return " · ".join(parts)
