"""The status line of every state, and how long work will still take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrolocal.tui.activity import Activity, size
from retrolocal.tui.answer import bar
from retrolocal.tui.engine import Advanced, Began
from retrolocal.tui.time_left import TimeLeft, spoken


def at(phase: str, seconds: float = 2.0, **facts: object) -> str:
    activity = Activity()
    activity.enter(phase, 0.0)  # type: ignore[arg-type]
    for name, value in facts.items():
        setattr(activity, name, value)
    line = activity.line(seconds)
    return f"{line.text} | {line.hint}"


@pytest.mark.parametrize(
    ("said", "phase", "facts"),
    [
        ("starting | ", "starting", {}),
        ("looking for org/m | ", "starting", {"stage": "looking", "about": "org/m"}),
        ("reading b.pdf | Esc pause", "starting", {"stage": "reading", "about": "b.pdf"}),
        (
            "splitting b.pdf into tokens | Esc pause",
            "starting",
            {"stage": "tokenising", "about": "b.pdf"},
        ),
        ("downloading | Esc pause", "starting", {"stage": "downloading"}),
        (
            "downloading 25% · 1.0 GB / 4.0 GB · 500 MB/s | Esc pause",
            "starting",
            {"stage": "downloading", "done": 10**9, "total": 4 * 10**9},
        ),
        (
            "loading the weights 50% · 2.0 MB / 4.0 MB | ",
            "starting",
            {"stage": "loading", "done": 2 * 10**6, "total": 4 * 10**6},
        ),
        (
            "prefill 37% · 115,712 / 312,408 tokens | Esc pause",
            "starting",
            {"stage": "prefilling", "done": 115_712, "total": 312_408},
        ),
        (
            "prefill 100% · 8 / 8 tokens · finishing | Esc pause",
            "starting",
            {"stage": "prefilling", "done": 8, "total": 8},
        ),
        ("a download is needed | y download  n not now", "consent", {}),
        ("paused at 37%, kept | Enter goes on", "paused", {"kept": "at 37%, kept"}),
        ("ready | ", "ready", {}),
        ("waiting 2 s | Esc stop", "waiting", {}),
        (
            "reading the question 50% · 5 / 10 tokens | Esc stop",
            "waiting",
            {"stage": "prefilling", "done": 5, "total": 10},
        ),
        (
            "answering  21 tokens · 20.0 tok/s · 2 s | Esc stop",
            "answering",
            {"tokens": 21, "first_text": 1.0},
        ),
        ("answering  2 s | Esc stop", "answering", {}),
        ("stopping, finishing a step | ", "stopping", {}),
        ("stopping, finishing the segment | ", "stopping", {"stage": "prefilling"}),
        ("failed: see the message above | r try again", "failed", {}),
        ("stopping, finishing a step | Esc quit now", "stopping", {"leaving": True}),
        ("saving the chat, 2 s | ", "saving", {}),
        ("saving the chat, 2 s | Esc quit now", "saving", {"leaving": True}),
        ("opening the chat, 2 s | ", "reopening", {}),
        (
            "compiling for this processor, once, 2 s | Esc stop",
            "waiting",
            {"stage": "compiling"},
        ),
    ],
)
def test_every_state_has_its_words(said: str, phase: str, facts: dict[str, object]) -> None:
    assert at(phase, **facts) == said


def test_a_stop_is_explained_only_when_it_takes_long() -> None:
    assert at("stopping", 0.2) == "stopping | "


def test_foreign_names_stay_on_one_line() -> None:
    said = at("starting", stage="reading", about="a\n\x1b[2Jb" + "c" * 100)
    assert "\n" not in said
    assert "\x1b" not in said
    assert len(said) < 80


def test_stages_follow_each_other() -> None:
    activity = Activity()
    activity.began_stage(Began("loading", "m"), 1.0)
    activity.advanced(Advanced("loading", 5, 10), 2.0)
    activity.advanced(Advanced("prefilling", 1, 10), 3.0)
    assert (activity.stage, activity.done, activity.stage_began) == ("prefilling", 1, 3.0)
    activity.enter("waiting", 4.0)
    assert (activity.stage, activity.total) == (None, 0)
    activity.wrote(5.0)
    activity.wrote(6.0)
    assert (activity.phase, activity.first_text) == ("answering", 5.0)


def test_quadratic_work_is_not_promised_too_early() -> None:
    left, seconds = TimeLeft(), 0.0
    for done in range(0, 400, 100):
        left.advance(done, 2000, seconds)
        seconds += 1 + 0.02 * (done + 50)
    left.advance(400, 2000, seconds)
    truth = sum(1 + 0.02 * (done + 50) for done in range(400, 2000, 100))
    straight = seconds / 400 * 1600
    found = left.seconds(seconds)
    assert found is not None
    assert abs(found - truth) < 0.01 * truth
    assert straight < 0.5 * truth


def test_nothing_is_said_before_three_steps_or_after_going_back() -> None:
    left = TimeLeft()
    for step in range(3):
        left.advance(step * 10, 100, float(step))
        assert left.seconds(float(step)) is None
    left.advance(30, 100, 3.0)
    assert left.seconds(3.0) == pytest.approx(7.0)
    assert left.seconds(4.0) == pytest.approx(6.0)
    left.advance(0, 100, 5.0)
    assert left.seconds(5.0) is None


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.001, 100)), min_size=3, max_size=30))
def test_time_left_is_never_negative(steps: list[tuple[int, float]]) -> None:
    left, done, now = TimeLeft(), 0, 0.0
    total = sum(size for size, _ in steps)
    left.advance(0, total, now)
    for size_of_step, seconds in steps:
        done, now = done + size_of_step, now + seconds
        left.advance(done, total, now)
        found = left.seconds(now)
        assert found is None or found >= 0


def test_words_for_time_size_and_bars() -> None:
    assert spoken(9.4) == "about 0:09 left"
    assert spoken(118) == "about 1:58 left"
    assert spoken(253) == "about 4:10 left"
    assert spoken(7325) == "about 2:02 h left"
    assert [size(n) for n in (5, 1500, 15_200_000_000, 212e9)] == [
        "5 B",
        "1.5 kB",
        "15.2 GB",
        "212 GB",
    ]
    assert [bar(share, 4) for share in (0, 1e-9, 0.5, 1, 7)] == ["", "▏", "██", "████", "████"]
