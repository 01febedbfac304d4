"""The wave panel has a line for each figure that the engine knows, and none for the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fakes import Stage, play
from scenes import FIGURES, MEMORY

from retrolocal.tui.engine import Measured


def test_a_block_cache_shows_its_hits_and_what_it_read(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        call = await stage.ask("why")
        call.emit(Measured(FIGURES, MEMORY, 1))
        await stage.until(lambda: "read per token" in stage.text())
        assert "hits" not in stage.text()
        assert "slow tier" not in stage.text()
        for count, hits in ((10, 0.25), (20, 0.5), (30, 1.0)):
            stage.clock.now += 1
            figures = replace(FIGURES, hit_ratio=hits, slow_bytes=3_700_000.0)
            call.emit(Measured(figures, MEMORY, count))
            await stage.until(lambda hits=hits: f"{hits:.0%}" in stage.text())  # type: ignore[misc]
        lines = [" ".join(line.split()) for line in stage.text().splitlines()]
        assert any(line.endswith("│ hits ▃▅█ 100%") for line in lines)
        assert any(line.endswith("of it from the slow tier 3.7 MB") for line in lines)
        assert any("speed" in line and line.endswith("10.0 tok/s") for line in lines)

    play(scene, state=state)
