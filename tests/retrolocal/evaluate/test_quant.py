"""Divergence of predictions under quantised weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from retrolocal.cli import main
from retrolocal.evaluate.quant import compared, divergences, perplexity

Captured = pytest.CaptureFixture[str]


def test_divergence_is_that_of_the_definition() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    exact, other = p.log().repeat(70, 1), q.log().repeat(70, 1)
    other[3] = exact[3] + 5
    found = divergences(exact, other)
    assert found.shape == (70,)
    assert found[0].item() == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert found[3].item() == pytest.approx(0, abs=1e-7)
    figures = compared(exact, other)
    assert figures["kl_p95"] == figures["kl_max"] == pytest.approx(found[0].item())
    assert figures["kl_mean"] == pytest.approx(found[0].item() * 69 / 70)
    assert figures["same_choice"] == pytest.approx(1 / 70)


def test_perplexity_of_even_predictions_is_the_vocabulary() -> None:
    assert perplexity(torch.zeros(130, 17), list(range(13)) * 10) == pytest.approx(17)


def test_the_builtin_model_is_bounded(capsys: Captured) -> None:
    assert main(["eval", "quant", "-m", "builtin", "--tokens", "200", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = {row["quant"]: row for row in result["results"]}
    assert result["tokens"] == 200
    assert list(rows) == ["none", "int8", "int4"]
    assert rows["int4"]["weight_bytes"] < rows["int8"]["weight_bytes"]
    assert rows["int8"]["weight_bytes"] < 0.6 * rows["none"]["weight_bytes"]
    assert 0 < rows["int8"]["kl_mean"] < rows["int4"]["kl_mean"]
    assert rows["int8"]["kl_mean"] < 0.05
    assert rows["int8"]["same_choice"] > 0.9


def test_wrong_usage_is_one_line(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    for words, said in (
        (["--quant", "int5"], "--quant is 'int5'; give int8, int4 or both"),
        (["--quant", "none"], "--quant is 'none'"),
        (["--tokens", "1"], "--tokens is 1; give at least 2"),
        (["-m", ""], "--model is empty"),
    ):
        assert main(["eval", "quant", *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["eval", "quant", "-m", "builtin", "-f", str(tmp_path / "a.txt")]) != 0
    assert capsys.readouterr().err.splitlines()[-1].startswith("retrolocal: ")
