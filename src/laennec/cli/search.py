"""`laennec search`: find the embedded spans that sound most like a recording."""

import argparse
from typing import TYPE_CHECKING, Any

from laennec import DEFAULT_MODEL
from laennec.cli.common import add_options, add_overwrite, refuse_existing, refuse_missing_model
from laennec.cli.prepare import options_of
from laennec.errors import InputError
from laennec.files import atomic_write
from laennec.terminal import say

if TYPE_CHECKING:
    from laennec.explore.index import EmbeddingIndex

_FILTERS = {"patient": "patients", "device": "devices", "location": "chest locations", "label": "labels"}


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec search`."""
    index_flags(parser)
    parser.add_argument("query", metavar="CLIP", help="the recording to search for")
    parser.add_argument(
        "--span", type=float, nargs=2, metavar=("START", "END"), help="search for this part, in seconds"
    )
    parser.add_argument("--top", type=int, default=20, help="number of spans (default: 20)")
    for name, words in _FILTERS.items():
        parser.add_argument(f"--{name}", nargs="+", metavar=name.upper(), help=f"only spans of these {words}")
    parser.add_argument(
        "--other-patients", action="store_true", help="leave out the patient of CLIP, which is a recording of the index"
    )
    parser.add_argument("--out", metavar="FILE.csv", help="write the result as CSV")
    add_overwrite(parser)


def index_flags(parser: argparse.ArgumentParser) -> None:
    """Add the index, its model and its corpus."""
    parser.add_argument("index", metavar="INDEX", help="output folder of laennec embed, or a Parquet file of it")
    parser.add_argument("--model", help="the model that made the embeddings (default: the model in the package)")
    parser.add_argument("--corpus", help="the corpus that was embedded, for device, chest location and label")
    add_options(parser, "--data-dir", help="folder or zip file of the corpus")
    add_options(parser, "--base", "--tables-dir", "--level", "--option")


def opened(options: argparse.Namespace, **settings: Any) -> "EmbeddingIndex":
    """The index of a command line, with the metadata of its corpus."""
    from laennec.explore.index import EmbeddingIndex

    if options.model:
        refuse_missing_model(options.model)
    if options.data_dir and not options.corpus:
        raise InputError("--data-dir is for a corpus; name it too, e.g. --corpus folder")
    index = EmbeddingIndex.open(options.index, options.model or DEFAULT_MODEL, base=options.base, **settings)
    if options.corpus:
        from laennec.corpora.load import load_corpus

        given = {name: getattr(options, name) for name in ("tables_dir", "level") if getattr(options, name)}
        given |= {"allow_missing": True} if options.corpus == "icbhi2017" else {}  # no score is made here
        index.join(
            load_corpus(options.corpus, options.data_dir, protocol="none", **given, **options_of(options.option))
        )
    return index


def run(options: argparse.Namespace) -> int:
    """Search, print and write the result."""
    from laennec.rendering import plain

    if options.out:
        refuse_existing(options.out, options.overwrite)
    index = opened(options)
    filters = {name: getattr(options, name) for name in _FILTERS if getattr(options, name)}
    found = index.search(
        options.query, options.top, span=options.span, other_patients=options.other_patients, **filters
    )
    found = found.dropna(axis="columns", how="all").map(lambda value: plain(value) if isinstance(value, str) else value)
    if options.out:
        with atomic_write(options.out) as file:
            found.to_csv(file, index=False, float_format="%.6g")
    shown = found.drop(columns=["recording_id", "cycle_id", "split"], errors="ignore")
    shown["recording"] = [name.replace("\\", "/").rsplit("/", 1)[-1] for name in shown["recording"]]
    say(*shown.to_string(index=False, float_format=lambda value: f"{value:.3f}").splitlines())
    if options.out:
        say(f"similar spans: {options.out}")
    return 0
