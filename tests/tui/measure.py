"""What the application costs on this machine.

    python tests/tui/measure.py [--text FILE] [--json]

Times of CPU are of this process; times of the wall depend on what else the machine does. The
first figures use the fake engine, the last two the real program with the built-in model in tmux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import Call, Stage, a_document, play
from test_real_terminal import TEXT, Tmux
from textual.events import AppBlur, AppFocus

from retrolocal.tui.engine import Wrote
from retrolocal.tui.source_view import TextView

TURNS = 200
KEYS = 100
ANSWER = (
    "Some **words** of an answer.\n\n- one\n- two\n\n```py\nx = 1\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n"
)


async def painted(stage: Stage) -> None:
    """Waits until the screen has been drawn."""
    drawn = asyncio.Event()
    stage.chat.call_after_refresh(drawn.set)
    await drawn.wait()


async def many_turns(stage: Stage) -> None:
    from retrolocal.tui.engine import Turn

    await stage.ready()
    stage.chat.show_turns([Turn(f"Question {n}?", ANSWER) for n in range(TURNS)])
    await stage.pilot.pause(1)


def scene_figure(work: Callable[[Stage], Any]) -> Any:
    """What a scene returns."""
    found: list[Any] = []

    async def scene(stage: Stage) -> None:
        found.append(await work(stage))

    with tempfile.TemporaryDirectory() as state:
        play(scene, state=Path(state))
    return found[0]


async def key_to_screen(stage: Stage) -> tuple[float, ...]:
    """95th percentile of milliseconds from a key to the drawn screen at 100 pieces a second.

    By the clock, and of CPU (of everything that the process did meanwhile).
    """
    await many_turns(stage)
    call = await stage.ask("why")
    going = asyncio.create_task(_pour(call))
    await asyncio.sleep(1)
    times, costs = [], []
    area = stage.chat.prompt.area
    for number in range(KEYS):
        before, burned = time.perf_counter(), time.process_time()
        stage.app.simulate_key("x")
        while len(area.text) <= number:
            await asyncio.sleep(0)
        await painted(stage)
        times.append(time.perf_counter() - before)
        costs.append(time.process_time() - burned)
        await asyncio.sleep(0.03)
    going.cancel()
    return tuple(1000 * statistics.quantiles(one, n=20)[-1] for one in (times, costs))


async def _pour(call: Call) -> None:
    number = 0
    while True:
        call.emit(Wrote(f"- item **{number}** of `it`\n" if number % 8 == 0 else "and words "))
        number += 1
        await asyncio.sleep(0.01)


def append_to(rows: str, head: str = "") -> Callable[[Stage], Any]:
    """Milliseconds of CPU of one more row, drawn, when there are 800."""

    async def work(stage: Stage) -> float:
        await stage.ready()
        call = await stage.ask("why")
        call.emit(Wrote(head + "".join(rows.format(n) for n in range(800))))
        await stage.until(lambda: stage.chat.log_view.virtual_size.height > 700)
        await painted(stage)
        costs = []
        for number in range(20):
            answer = stage.chat.log_view.answers[-1]
            before = time.process_time()
            answer.append(rows.format(800 + number))
            await painted(stage)
            costs.append(time.process_time() - before)
        return 1000 * statistics.median(costs)

    return work


async def focus(stage: Stage) -> float:
    """Milliseconds of CPU of the terminal losing and getting back the focus."""
    await many_turns(stage)
    before = time.process_time()
    for event in (AppBlur(), AppFocus()):
        stage.app.post_message(event)
        await stage.pilot.pause()
    await painted(stage)
    return 1000 * (time.process_time() - before)


async def resize(stage: Stage) -> float:
    """Seconds of CPU of another width at 200 turns."""
    await many_turns(stage)
    before = time.process_time()
    await stage.pilot.resize_terminal(90, 28)
    await painted(stage)
    return time.process_time() - before


def source_view(text: str) -> Callable[[Stage], Any]:
    """Seconds from the key to the drawn text, and of a resize."""

    async def work(stage: Stage) -> tuple[float, float, int]:
        import numpy  # noqa: F401  # the real engine has loaded it by then

        stage.engine.documents = (a_document("book.txt", text),)
        await stage.ready()
        before = time.perf_counter()
        stage.app.simulate_key("f3")
        while not any(view.text for view in stage.app.screen.query(TextView)):
            await asyncio.sleep(0)
        drawn = asyncio.Event()
        stage.app.screen.call_after_refresh(drawn.set)
        await drawn.wait()
        opened = time.perf_counter() - before
        before = time.perf_counter()
        await stage.pilot.resize_terminal(90, 28)
        return opened, time.perf_counter() - before, len(text)

    return work


def first_paint() -> float:
    """Seconds from starting the program to its screen, before any model; median of 5."""
    import os
    import pty
    import select

    times = []
    for _ in range(5):
        master, slave = pty.openpty()
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as state:
            program = subprocess.Popen(
                [sys.executable, "-m", "retrolocal", "chat", "-m", "builtin"],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env={**os.environ, "TERM": "xterm-256color", "XDG_STATE_HOME": state},
            )
            seen = b""
            while b"sk a question" not in seen:
                if select.select([master], [], [], 30)[0]:
                    seen += os.read(master, 65536)
            times.append(time.perf_counter() - began)
            program.kill()
            program.wait()
        os.close(master)
        os.close(slave)
    return statistics.median(times)


def decode_speed() -> tuple[float, float]:
    """Tokens per second of the built-in model: in the application, and plain."""
    words = ["-m", "builtin", "--cache", "dense", "--temp", "0", "-n", "1500", "--ignore-eos"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        book = Path(folder) / "ships.txt"
        book.write_text(TEXT)
        question = "In the year 1200 the ship number"
        plain = subprocess.run(
            [
                *(sys.executable, "-m", "retrolocal", "chat", *words),
                *("-f", str(book), "-q", "--json", "-p", question),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        tmux = Tmux(Path(folder))
        try:
            tmux.chat(*words, "-f", str(book))
            tmux.wait_for("ready")
            tmux.type(question)
            tmux.keys("Enter")
            screen = tmux.wait_for("first token")
        finally:
            tmux.close()
    found = re.search(r"speed[^\d\n]*([\d.]+) tok/s", screen)
    assert found is not None
    return float(found[1]), json.loads(plain.stdout)["decode_tokens_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="a long text for the source view")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    text = given.text.read_text("utf-8") if given.text else TEXT * 250
    figures: dict[str, float] = {}

    def found(name: str, figure: float) -> None:
        figures[name] = figure
        if not given.json:
            print(f"{name:<62} {figure:10.3f}", flush=True)

    waited, burned = scene_figure(key_to_screen)
    found("key to screen while answering, 200 turns, p95 [ms]", waited)
    found("the same in CPU [ms]", burned)
    found(
        "append to an 800-item list [ms CPU]",
        scene_figure(append_to("- item **{}** of the list, with words about `it` and more\n")),
    )
    found(
        "append to an 800-row table [ms CPU]",
        scene_figure(
            append_to("| item **{}** | of the | table |\n", "| a | b | c |\n|---|---|---|\n")
        ),
    )
    found(
        "append to an 800-line code block [ms CPU]", scene_figure(append_to("x{} = 1\n", "```py\n"))
    )
    found("focus lost and regained, 200 turns [ms CPU]", scene_figure(focus))
    found("resize, 200 turns [s CPU]", scene_figure(resize))
    opened, again, characters = scene_figure(source_view(text))
    found(f"source view opened, {characters:,} characters [s]", opened)
    found("source view resized [s]", again)
    found("start to first paint [s]", first_paint())
    shown, plain = decode_speed()
    found("decode in the application [tok/s]", shown)
    found("decode plain [tok/s]", plain)
    found("ratio", shown / plain)
    if given.json:
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
