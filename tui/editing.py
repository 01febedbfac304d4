"""The last question while it is edited: the prompt has its text, the log still has its answer.

Only sending what is typed replaces the question; until then everything can be left as it was.
"""

from __future__ import annotations

from .answer import Answer, Question
from .chat_log import ChatLog
from .prompt_bar import PromptBar

NOTICE = "editing: Enter replaces the question and its answer, Esc keeps them"


class Editing:
    def __init__(self) -> None:
        self.question: Question | None = None
        """What is edited; None when nothing is."""
        self._draft = ""
        """What was typed before."""

    def begin(self, question: Question, prompt: PromptBar, log: ChatLog) -> None:
        """Puts the question into the prompt."""
        if self.question is None:
            self._draft = prompt.text
        self.question = question
        prompt.set_text(question.text)
        prompt.set_notice(NOTICE)
        _mark(question, log, True)

    def leave(self, prompt: PromptBar, log: ChatLog) -> bool:
        """Puts back what was typed before; False when nothing is edited."""
        if self.question is None:
            return False
        _mark(self.question, log, False)
        prompt.set_text(self._draft)
        self._end(prompt)
        return True

    def gone(self, prompt: PromptBar) -> None:
        """The question is no longer the last one; what is typed stays."""
        if self.question is not None:
            if not prompt.text:
                prompt.set_text(self._draft)
            self._end(prompt)

    def _end(self, prompt: PromptBar) -> None:
        self.question, self._draft = None, ""
        prompt.set_notice("")


def _mark(question: Question, log: ChatLog, edited: bool) -> None:
    """Shows the question and its answer as what may be replaced."""
    views = list(log.children)
    behind = views[views.index(question) :] if question in views else []
    for view in behind:
        if isinstance(view, Question | Answer):
            view.set_class(edited, "-edited")
