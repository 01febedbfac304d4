"""`retrolocal eval attention` on a random model and on the built-in one."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from retrolocal.cli import main
from retrolocal.config import SessionConfig, WaveConfig
from retrolocal.errors import RetrolocalError
from retrolocal.evaluate import attention
from retrolocal.evaluate.calibration import Samples, calibration, sharpness_class
from retrolocal.evaluate.options import AttentionOptions
from retrolocal.evaluate.plot import write_plot
from retrolocal.evaluate.record import STEPS, RecordingCache, RecordingSession
from retrolocal.evaluate.report import MOST_ROWS, attention_lines
from retrolocal.ingest.extract import read_document
from retrolocal.wave.zones import fewest_tokens

ROOT = Path(__file__).parents[3]
TEXT = ROOT / "LICENSE"
TOKENS = 1536


@pytest.fixture(scope="module")
def said() -> list[str]:
    """Progress of the run."""
    return []


@pytest.fixture(scope="module")
def plot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plot") / "out.svg"


@pytest.fixture(scope="module")
def result(tiny_model: Path, plot: Path, said: list[str]) -> dict[str, Any]:
    """Two layers of four heads over two KV heads, two questions."""
    options = AttentionOptions(
        model=str(tiny_model), file=str(TEXT), tokens=TOKENS, questions=2, plot=plot
    )
    return attention.run(options, said.append)


def test_facts(result: dict[str, Any], said: list[str]) -> None:
    assert (result["tokens"], result["questions"], result["steps"]) == (TOKENS, 2, 2 * STEPS)
    assert (result["layers"], result["heads"], result["kv_heads"]) == ([0, 1], 4, 2)
    assert result["settings"]["paper"]["scheme"] == "paper"
    read = result["bytes_per_step"]
    assert read["dense"] == 2 * 2 * TOKENS * 2 * 16 * 4
    assert 0 < read["wave"] < read["dense"]
    assert 0 < read["paper"] < read["dense"]
    assert [row["layer"] for row in result["bytes_per_step_by_layer"]] == [0, 1]
    assert any("question 2 of 2" in line for line in said)


def test_a_row_per_layer_and_head(result: dict[str, Any]) -> None:
    rows = result["results"]
    assert [(row["layer"], row["head"], row["kv_head"]) for row in rows] == [
        (layer, head, head // 2) for layer in (0, 1) for head in range(4)
    ]
    for row in rows:
        assert 1 <= row["sharpness"] <= TOKENS
        assert row["class"] == sharpness_class(row["sharpness"] / TOKENS)
        for scheme in ("paper", "wave", "wave_equal"):
            own = row[scheme]
            assert 0 <= own["mass_exact"] <= 1
            assert own["relative_error"] >= 0
            assert own["relative_error_p95"] >= own["relative_error_median"]
            assert own["retrieved_tokens"] > 0
        wave = row["wave"]
        assert wave["mass_estimated_true"] == pytest.approx(1 - wave["mass_exact"])
        assert 0 <= wave["mass_estimated_believed"] <= 1
        assert math.isfinite(row["error_ratio"])
        assert row["error_ratio"] == pytest.approx(
            wave["relative_error"] / row["paper"]["relative_error"]
        )
        assert math.isfinite(row["error_ratio_equal"])
    assert result["worst_error_ratio"] == max(row["error_ratio"] for row in rows)


def test_stores_stand_side_by_side(result: dict[str, Any]) -> None:
    """At equal bytes what takes less room per token retrieves more of them."""
    rows = {(row["store_type"], row["scheme"]): row for row in result["stores"]}
    assert set(rows) == {
        (store, scheme) for store in ("bf16", "int8", "int4") for scheme in ("wave", "wave_equal")
    }
    for scheme in ("wave", "wave_equal"):
        own = [rows[store, scheme] for store in ("bf16", "int8", "int4")]
        # Two layers of two KV heads of 16 dimensions, in float32 as they come.
        assert [row["bytes_per_token"] for row in own] == [4 * 128, 4 * 36, 4 * 20]
        assert all(row["relative_error_p95"] >= row["relative_error_median"] for row in own)
    equal = [rows[store, "wave_equal"] for store in ("bf16", "int8", "int4")]
    assert equal[0]["retrieved_tokens"] <= equal[1]["retrieved_tokens"]
    assert equal[1]["retrieved_tokens"] <= equal[2]["retrieved_tokens"]
    wave = rows["int8", "wave"]
    assert wave["bytes_per_step"] == pytest.approx(result["bytes_per_step"]["wave"])
    assert rows["bf16", "wave"]["bytes_per_step"] > wave["bytes_per_step"]


def test_calibration_covers_every_sample(result: dict[str, Any]) -> None:
    for layer, samples in ((0, 64), (1, 64), (None, 128)):
        rows = [row for row in result["calibration"] if row["layer"] == layer]
        assert sum(row["samples"] for row in rows) == samples
        assert all(row["compared"] <= row["samples"] for row in rows)


def test_text_is_narrow_and_json_is_plain(result: dict[str, Any]) -> None:
    json.dumps(result, allow_nan=False)
    lines = attention_lines(result)
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("| 1.") for line in lines) == 4
    many = {**result, "results": result["results"] * (MOST_ROWS // 8 + 1)}
    many["results"].sort(key=lambda row: int(row["layer"]))
    *_, last = result["calibration"]
    many["calibration"] = [*({**last, "layer": n} for n in range(MOST_ROWS)), last]
    lines = attention_lines(many)
    assert max(map(len, lines)) <= 100
    assert len(lines) < 50
    assert not any(line.startswith("| 1.") for line in lines)


def test_the_plot_has_two_axes(result: dict[str, Any], plot: Path) -> None:
    assert [path.name for path in plot.parent.iterdir()] == ["out.svg"]
    tree = ElementTree.fromstring(plot.read_text("utf-8"))
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    groups = {group.get("id") or "" for group in tree.iter("{http://www.w3.org/2000/svg}g")}
    assert {name for name in groups if name.startswith("axes_")} == {"axes_1", "axes_2"}


def some_samples() -> Samples:
    share = torch.tensor([[0.5, 0.01, 0.0001]]).repeat(4, 1).double()
    return Samples(3, share, torch.full_like(share, 0.02), torch.full_like(share, 0.01))


def test_the_plot_is_the_same_every_time(result: dict[str, Any], tmp_path: Path) -> None:
    odd = {**result, "file": "a $b$ <&> \x01 漢字.txt"}
    written = []
    for name in ("a.svg", "b.svg"):
        write_plot(tmp_path / name, odd, [some_samples()])
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    ElementTree.fromstring(written[0].decode())


def test_a_plot_that_cannot_be_written(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrolocal.evaluate.plot._figure", lambda *given: Figure())
    folder = tmp_path / "out.svg"
    folder.mkdir()
    with pytest.raises(RetrolocalError, match=r"--plot: .*out\.svg cannot be written"):
        write_plot(folder, result, [some_samples()])
    assert list(tmp_path.iterdir()) == [folder]


def test_calibration_by_class() -> None:
    samples = some_samples()
    samples.believed[:, 2] = samples.real[:, 2] = 1e-9
    rows = calibration([samples])
    assert [(row["layer"], row["class"]) for row in rows] == [
        (layer, name) for layer in (3, None) for name in ("diffuse", "middle", "sharp")
    ]
    assert [row["compared"] for row in rows[:3]] == [4, 4, 0]
    assert rows[0]["ratio_median"] == rows[0]["ratio_p95"] == pytest.approx(2)
    assert rows[2]["ratio_median"] is None


def test_holding_counts_the_heaviest_tokens() -> None:
    k = torch.zeros(1, 99, 4)
    k[0, 7, 0] = 100.0
    q = torch.zeros(2, 1, 4)
    q[1, 0, 0] = 1.0
    assert attention.holding(q, k, 0).tolist() == [[90], [1]]


def test_recording_keeps_single_queries_only_when_asked() -> None:
    cache = RecordingCache()
    k, v, q = torch.randn(3, 2, 5, 8)
    cache.attend(q, k, v, torch.arange(5))
    cache.attend(q[:, :1], k[:, :1], v[:, :1], torch.tensor([5]))
    cache.recording = True
    cache.attend(q[:, :2], k[:, :2], v[:, :2], torch.tensor([6, 7]))
    cache.attend(q[:, 1:2], k[:, 1:2], v[:, 1:2], torch.tensor([8]))
    record = cache.record(1, 5)
    assert torch.equal(record.q, q[None, :, 1])
    assert torch.equal(record.k, k)
    assert torch.equal(record.v, v)


def questions(session: RecordingSession, **changes: Any) -> list[torch.Tensor]:
    document = read_document(TEXT)
    given = {"tokens": 1500, "questions": 2, "seed": 0, "progress": lambda line: None, **changes}
    return [layer.q for layer in session.record(document, **given)]


def test_the_seed_decides(tiny_model: Path) -> None:
    session = RecordingSession.load(str(tiny_model), SessionConfig())
    first, again, other = (questions(session, seed=seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_a_question_leaves_nothing_behind(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = ["the same words", "some others that are more", "the same words"]
    monkeypatch.setattr(RecordingSession, "_quotations", lambda *given: twice)
    session = RecordingSession.load(str(tiny_model), SessionConfig())
    for q in questions(session, questions=3):
        first, other, again = q.split(STEPS)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.fixture
def short(tmp_path: Path) -> Path:
    path = tmp_path / "short.txt"
    path.write_text("Too short to be clustered. " * 20)
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-m {model} -f {short}", "short.txt has"),
        ("-m {model} -f {text} --tokens 1000", "--tokens is 1,000"),
        ("-m {model} -f {text}", "positions for 4,096"),
        ("-m {short} -f {text}", "short.txt"),
        ("-m {model} -f {short}.none", "short.txt.none"),
    ],
)
def test_refused_in_one_line(
    words: str, message: str, short: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words.replace("{model}", str(tiny_model)).replace("{short}", str(short))
    assert main(["eval", "attention", *given.replace("{text}", str(TEXT)).split()]) in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if "retrolocal: " in line]
    assert len(errors) == 1
    assert message in errors[0]
    if "clustered" in errors[0]:
        assert f"{fewest_tokens(WaveConfig()):,}" in errors[0]


def test_the_built_in_model_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = f"eval attention -f {ROOT / 'ARCHITECTURE.md'} --tokens 1500 --questions 2 --json"
    assert main(words.split()) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed["model"] == "builtin"
    assert printed["layers"] == [4]
    assert {row["class"] for row in printed["calibration"]} <= {"diffuse", "middle", "sharp"}
    assert "reading: 1,500 of 1,500 tokens" in captured.err
