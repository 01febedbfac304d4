"""What /set takes, and what the engine is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import Stage, an_answer, an_opening, play

from retrolocal.cli import SAMPLING, chat_parser
from retrolocal.errors import UsageError
from retrolocal.tui import slash
from retrolocal.tui.answering import SETTINGS, listed, parse


def test_every_setting_is_an_option_of_the_command_line() -> None:
    options = chat_parser()._option_string_actions
    fields = {setting.field: options[f"--{setting.name}"].dest for setting in SETTINGS}
    assert fields == {**SAMPLING, "max_new_tokens": "predict"}


@pytest.mark.parametrize(
    ("typed", "field", "value"),
    [
        ("temp 0.7", "temperature", 0.7),
        ("parameter temperature 0", "temperature", 0.0),
        ("--top-k 0", "top_k", 0),
        ("repeat_penalty 1.1", "repeat_penalty", 1.1),
        ("num_predict -1", "max_new_tokens", -1),
        ("seed 7", "seed", 7),
        ("top-p default", "top_p", None),
    ],
)
def test_names_and_values(typed: str, field: str, value: float | None) -> None:
    [setting], found, given = parse(typed)
    assert (setting.field, found, given) == (field, value, True)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("temprature 1", "there is no setting temprature; did you mean temperature?"),
        ("xyzzy 1", "there is no setting xyzzy; /set lists what there is"),
        ("temp warm", "/set temp warm: give a number, or default"),
        ("top-k 1.5", "/set top-k 1.5: give a whole number, or default"),
        ("temp -1", "--temp is -1.0; it must be 0 (greedy) or more"),
        ("temp nan", "--temp is nan; give a finite number"),
        ("top-p 2", "--top-p is 2.0; it must lie between 0 and 1"),
        ("predict -5", "--predict is -5; give -1 (all that fit) or more"),
        (
            "predict 2147483649",
            "--predict is 2147483649; give at most 2147483648, or -1 (all that fit)",
        ),
        ("temp 1 2", "/set temp takes one value, and 2 were given"),
    ],
)
def test_what_makes_no_sense_is_one_line(typed: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(typed)
    assert str(refused.value) == said


def test_values_are_listed_as_they_are_typed() -> None:
    assert "9" * 400 in listed(parse("seed")[0], {"seed": int("9" * 400)})
    settings, _, given = parse("")
    assert not given
    lines = listed(settings, {"temperature": 0.7, "top_k": 40, "seed": -1}).splitlines()
    assert len(lines) == len(SETTINGS)
    assert [line.split()[:2] for line in lines[:2]] == [["temp", "0.7"], ["top-k", "40"]]
    assert "the model's own" in lines[-1]


def test_names_are_completed() -> None:
    assert [one.text for one in slash.complete("/set to")] == ["/set top-k ", "/set top-p "]
    assert len(slash.complete("/set ")) == len(SETTINGS)
    assert not slash.complete("/set temp 0")


def test_the_next_answer_is_made_with_it(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        call = await stage.call("open")
        await stage.type("/set seed 7")
        call.give(an_opening(answering={"temperature": 0.8, "top_k": 40}))
        await stage.until(stage.resting)
        call = await stage.ask("one")
        assert stage.engine.answering == {"seed": 7}
        await stage.type("/set parameter temperature 0.25")
        await stage.until(lambda: "temp              0.25" in stage.text())
        assert stage.engine.answering == {"seed": 7}
        call.give(an_answer("1"))
        await stage.until(stage.resting)
        call = await stage.ask("two")
        assert stage.engine.answering == {"seed": 7, "temperature": 0.25}
        call.give(an_answer("2"))
        await stage.until(stage.resting)
        await stage.type("/set temp hot")
        await stage.until(lambda: "give a number" in stage.status())
        assert stage.chat.prompt.text == "/set temp hot"
        stage.chat.prompt.set_text("")
        await stage.type("/set")
        await stage.until(lambda: "top-k             40" in stage.text())

    play(scene, state=state)
