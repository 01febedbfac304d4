"""Options that several commands have, spelt and explained in one place."""

from __future__ import annotations

from argparse import Namespace, _ArgumentGroup
from typing import TYPE_CHECKING, Any

from .arguments import budget, page_ranges, size
from .config import DOCUMENT_STORE, SessionConfig, StoreType, WaveConfig, environment
from .errors import UsageError

CACHE_TYPES: dict[str, StoreType] = {
    "f16": "bf16",
    "bf16": "bf16",
    "q8_0": "int8",
    "q4_0": "int4",
}
"""llama.cpp's names of cache types, as store types."""

if TYPE_CHECKING:
    from .ingest import Options


def model_options(group: _ArgumentGroup) -> None:
    group.add_argument(
        "-m",
        "--model",
        "-hf",
        "--hf-repo",
        metavar="MODEL",
        default=environment("MODEL"),
        help="a folder, a Hub id (org/name[@revision]), or builtin: a tiny model that comes with "
        "the program and quotes from the document (default: $RETROLOCAL_MODEL, else, but not in "
        "bench and eval, that of the configuration file, else the best that is here and fits, "
        "else builtin)",
    )
    group.add_argument("--revision", help="branch, tag or commit of a Hub model")
    group.add_argument("--offline", action="store_true", help="never use the network")


def extraction_options(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--password",
        default=environment("PDF_PASSWORD"),
        help="password of an encrypted PDF (default: $RETROLOCAL_PDF_PASSWORD, which other users "
        "of the machine cannot see)",
    )
    group.add_argument("--encoding", help="encoding of text files (default: found out)")
    group.add_argument(
        "--pages",
        type=page_ranges,
        default=(),
        metavar="N-M,...",
        help="read these pages of a PDF (default: all)",
    )
    group.add_argument(
        "--force",
        action="store_true",
        help="read a PDF whose text looks like garbage, an archive that inflates very much; allow "
        "4 times the memory and time",
    )


def extraction(arguments: Namespace) -> Options:
    """What was said about the files."""
    from .ingest import Options

    return Options(
        password=arguments.password,
        encoding=arguments.encoding,
        pages=arguments.pages,
        force=arguments.force,
    )


def _gib(text: str) -> float:
    return size(text) / 2**30


_gib.__name__ = size.__name__


def device_options(group: _ArgumentGroup) -> None:
    group.add_argument(
        "-dev", "--device", default="auto", metavar="auto|cpu|cuda", help="default: %(default)s"
    )
    group.add_argument(
        "--dtype",
        default="auto",
        metavar="auto|float32|bfloat16|float16",
        help="of weights and cache (default: the checkpoint's)",
    )
    group.add_argument(
        "--quant",
        default="none",
        metavar="none|int8|int4",
        help="hold the weights in a byte a number, or half of one; made when they are first loaded "
        "and kept for the next time (default: %(default)s)",
    )
    group.set_defaults(usual_vram=None)
    group.add_argument(
        "--vram",
        type=_gib,
        metavar="SIZE",
        help="use no more of the GPU's memory (default: all that is free)",
    )


def threads_option(group: _ArgumentGroup) -> None:
    group.add_argument(
        "-t",
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="CPU threads (default: all cores)",
    )


def loading_config(arguments: Namespace, **more: Any) -> SessionConfig:
    """The settings of `model_options`, `device_options` and `threads_option`, and `more` of them.

    Raises UsageError.
    """
    names = ("device", "dtype", "quant", "threads", "revision", "offline")
    given = {name: getattr(arguments, name) for name in names}
    return SessionConfig(**given | {"vram": _vram(arguments)} | more)


def ram_bytes(arguments: Namespace) -> int:
    """`--ram`, else the usual one where a CPU may compute; 0: what is free."""
    if arguments.ram is not None:
        return int(arguments.ram)
    usual = arguments.usual_ram
    return 0 if usual is None or arguments.device == "cuda" else size(usual)


def _vram(arguments: Namespace) -> float | None:
    """`--vram`, else the usual one where a GPU may compute, in GiB."""
    if arguments.vram is not None:
        return float(arguments.vram)
    usual = arguments.usual_vram
    return None if usual is None or arguments.device == "cpu" else _gib(usual)


def wave_options(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--scheme",
        default="wave",
        metavar="wave|paper",
        help="paper: selection and estimation as published in RetroInfer; used where the index is, "
        "so in every text with --cache wave (default: wave)",
    )
    budget_option(group)
    index_option(group)
    _store_options(group)


def wave_config(arguments: Namespace) -> WaveConfig:
    """The settings of `wave_options`; raises UsageError."""
    return WaveConfig(
        scheme=arguments.scheme,
        budget=arguments.budget,
        index_type=arguments.index_type,
        store_type=store_type(arguments),
    )


def store_type(arguments: Namespace) -> StoreType:
    """What `--store-type` and llama.cpp's names for it agree on; raises UsageError."""
    given: dict[str, StoreType] = {}
    if arguments.store_type is not None:
        given[f"--store-type {arguments.store_type}"] = arguments.store_type
    for flag, name in (
        ("--cache-type-k", arguments.cache_type_k),
        ("--cache-type-v", arguments.cache_type_v),
    ):
        if name is None:
            continue
        if name not in CACHE_TYPES:
            raise UsageError(f"{flag} is {name!r}; give one of {', '.join(CACHE_TYPES)}")
        given[f"{flag} {name}"] = CACHE_TYPES[name]
    if len(set(given.values())) > 1:
        raise UsageError(
            f"{' and '.join(given)} contradict each other: keys and values are stored alike, "
            "give one of them or both the same"
        )
    usual: StoreType = arguments.usual_store_type
    return next(iter(given.values()), usual)


def prefill_option(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--prefill",
        default="auto",
        metavar="auto|dense|wave",
        help="how a long prompt is read: exactly (dense), or through the index from the length on "
        "where that is faster, with an error of its own (wave); auto is dense but for questions "
        "of up to 64 tokens behind a text",
    )


def index_option(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--index-type",
        default="int8",
        metavar="int8|bf16|f32",
        help="how the wave index keeps centroids and value sums (default: %(default)s)",
    )


def _store_options(group: _ArgumentGroup) -> None:
    group.set_defaults(usual_store_type=DOCUMENT_STORE)
    group.add_argument(
        "--store-type",
        metavar="bf16|int8|int4",
        help="how keys and values that are clustered are stored: 1 byte a number (int8), half of "
        "one (int4, with an error of its own), or as the model computes them (bf16) "
        f"(default: {DOCUMENT_STORE})",
    )
    for letter, what in (("k", "keys"), ("v", "values")):
        group.add_argument(
            f"-ct{letter}",
            f"--cache-type-{letter}",
            metavar="|".join(CACHE_TYPES),
            help=f"the same by llama.cpp's names; {what} are stored like "
            f"{'values' if letter == 'k' else 'keys'}",
        )


def budget_option(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--budget",
        type=budget,
        default="auto",
        metavar="auto|FRACTION",
        help="share of the text attended exactly in a step; 1 is dense attention (auto: as much "
        "as the mass asks for, up to a few per cent)",
    )


def ram_option(group: _ArgumentGroup) -> None:
    group.set_defaults(usual_ram=None)
    group.add_argument(
        "--ram",
        type=size,
        metavar="SIZE",
        help="memory that the program may use, such as 4G: clustered keys and values beyond it lie "
        "in a file, the most useful of them in memory (default, and 0: what is free)",
    )


def batch_option(group: _ArgumentGroup) -> None:
    group.add_argument(
        "-b",
        "--batch-size",
        type=int,
        default=8192,
        metavar="N",
        help="tokens of the prompt read at once (default: %(default)s)",
    )
