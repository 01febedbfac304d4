"""Command lines as llama.cpp users type them."""

from __future__ import annotations

import pytest

from retrolocal.arguments import names, normalise, numbers, page_ranges
from retrolocal.cli import chat_parser, session_config
from retrolocal.errors import UsageError

LLAMA_CPP_OPTIONS = set(
    """
-C -Cb -Cd -Cr -a -bf -cb -cl -cmoe -cms -cnv -co -cram -ctk -ctkd -ctv -ctvd -ctxcp -devd -dr
-dt -e -fa -fit -fitc -fitp -fitt -gan -gaw -hfd -hff -hft -i -if -j -jf -kvo -kvu -l -lcd -lcs
-lm -lv -md -mg -mli -mm -mmu -mu -ncmoe -ngl -ngld -nkvo -no-cnv -nocb -np -nr -o -ot -otd -rea
-s -sm -sp -sps -sys -sysf -tb -tbd -td -to -ts -ub -v --alias --api-key --cache-ram
--cache-reuse --cache-type-k --cache-type-v --chat-template --context-shift --control-vector
--cpu-mask --draft --dry-multiplier --dynatemp-range --embedding --fit --flash-attn --gpu-layers
--grammar --host --jinja --json-schema --keep --lora --main-gpu --mirostat --mlock --mmproj
--no-mmap --numa --n-gpu-layers --override-kv --parallel --perplexity --pooling --port
--prompt-cache --reasoning --rope-freq-base --rope-scaling --rpc --samplers --slot-save-path
--split-mode --spec-type --tensor-split --threads-batch --top-nsigma --typical --ubatch-size
--verbose --xtc-probability --yarn-ext-factor
""".split()  # noqa: SIM905 - a list of a hundred names reads better as words
)
OURS = {"-s", "-sys", "-sysf", "-ctk", "-ctv", "--cache-type-k", "--cache-type-v"}


def parse(*words: str) -> object:
    parser = chat_parser()
    return parser.parse_args(normalise(parser, words))


@pytest.mark.parametrize("option", sorted(LLAMA_CPP_OPTIONS - OURS))
@pytest.mark.parametrize("form", ["{} 1", "{}=1", "{}"])
def test_an_option_we_lack_is_refused_by_its_name(option: str, form: str) -> None:
    with pytest.raises(UsageError, match=f"no option {option};"):
        parse(*form.format(option).split())


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["-n", "32"], "predict", 32),
        (["-n32"], "predict", 32),
        (["--n-predict=-1"], "predict", -1),
        (["-s", "-1"], "seed", -1),
        (["-c4096"], "ctx_size", 4096),
        (["-sys", "Be brief."], "system_prompt", "Be brief."),
        (["-sys=Be brief."], "system_prompt", "Be brief."),
        (["-p", "-ngl is a word"], "prompt", "-ngl is a word"),
        (["-p", "--help me"], "prompt", "--help me"),
        (["-p", ""], "prompt", ""),
        (["--temp", "0"], "temp", 0.0),
        (["--temperature", "0.5"], "temp", 0.5),
        (["-f", "a.txt", "--file", "-"], "file", ["a.txt", "-"]),
        (["-r", "User:", "--stop", "###"], "reverse_prompt", ["User:", "###"]),
        (["-hf", "org/name"], "model", "org/name"),
        (["--ignore-eos"], "ignore_eos", True),
        (["--budget", "0.05"], "budget", 0.05),
        (["--budget", "auto"], "budget", None),
        ([], "budget", None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_read(words: list[str], name: str, value: object) -> None:
    assert getattr(parse(*words), name) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-n"], "-n needs a value"),
        (["-n", "many"], "is 'many'; give a whole number"),
        (["book.pdf"], "'book.pdf' is not an option"),
        (["--ignore-eos=1"], "takes no value"),
        (["--fil", "a"], "no option --fil; did you mean --file"),
        (["--budget", "lots"], "--budget is 'lots'; give a budget "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cache", "fast"], "--cache is 'fast'; give one of auto, dense, wave"),
        (["--device", "tpu"], "--device is 'tpu'"),
        (["--dtype", "int8"], "--dtype is 'int8'"),
        (["--scheme", "magic"], "--scheme is 'magic'"),
        (["--budget", "0"], "--budget is 0.0"),
        (["-c", "-5"], "--ctx-size is -5"),
        (["-b", "0"], "--batch-size is 0"),
        (["-t", "-1"], "--threads is -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_that_make_no_sense(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        session_config(parse(*words))  # type: ignore[arg-type]


def test_lists() -> None:
    assert numbers("512,4096") == (512, 4096)
    assert names("dense,wave") == ("dense", "wave")
    for wrong in ("", "1,", "1,x"):
        with pytest.raises(ValueError, match="invalid literal"):
            numbers(wrong)


@pytest.mark.parametrize(
    ("text", "ranges"),
    [("3", ((3, 3),)), ("7,1-4,3-5", ((1, 5), (7, 7))), ("1-2,3", ((1, 3),)), ("2-2", ((2, 2),))],
)
def test_page_ranges(text: str, ranges: tuple[tuple[int, int], ...]) -> None:
    assert page_ranges(text) == ranges


@pytest.mark.parametrize("text", ["", "0", "4-2", "1-", "-3", "a", "1,,2", "1-2-3"])
def test_page_ranges_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        page_ranges(text)
