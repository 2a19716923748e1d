"""`laennec prepare`: check, count, decode, export or upload a corpus."""

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from laennec.cache import cache_root
from laennec.cli.common import CORPUS, add_options
from laennec.errors import InputError
from laennec.files import explain_write_errors
from laennec.processes import check_jobs
from laennec.progress import Progress
from laennec.terminal import say
from laennec.untrusted import parse_yaml

_WITH_FLAGS = ("protocol", "name", "data_dir", "cache_dir")


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec prepare`."""
    parser.add_argument("corpus", help="icbhi2017, sprsound, physionet2016, folder, hub or synthetic")
    text = "folder or zip file of the corpus, or the folder to which a synthetic corpus is written"
    add_options(parser, "--data-dir", help=text)
    parser.add_argument(
        "--check", action="store_true", help="decode all recordings and list every problem; writes nothing"
    )
    parser.add_argument(
        "--sampling-rate",
        type=int,
        help="decode to this rate in Hz into the cache, e.g. 16000; with --export, the declared rate",
    )
    parser.add_argument(
        "--export", metavar="FOLDER", help="write the corpus as Parquet files that datasets.load_dataset reads"
    )
    parser.add_argument(
        "--push-to-hub", metavar="REPO", help="upload the exported corpus to a private data set repository, OWNER/NAME"
    )
    parser.add_argument("--public", action="store_true", help="with --push-to-hub: make a new repository public")
    parser.add_argument(
        "--i-have-the-right-to-redistribute",
        action="store_true",
        help="with --public: confirm that you may redistribute the recordings",
    )
    add_options(parser, "--protocol", "--option", *CORPUS, "--jobs")


def run(options: argparse.Namespace) -> int:
    """Check the corpus, or read, count and decode it."""
    from laennec.corpora.check import check_corpus
    from laennec.corpora.load import check_duplicates, load_corpus
    from laennec.corpora.recordings import UnusableRecordingsError
    from laennec.corpora.waveforms import decode_all

    if check_jobs(options.jobs) > 1 and (options.check or options.export or not options.sampling_rate):
        raise InputError("--jobs is for decoding into the cache; add --sampling-rate RATE, or leave it out")
    if options.sampling_rate is not None and options.sampling_rate < 1:
        raise InputError(f"--sampling-rate is {options.sampling_rate}; give a rate in Hz, e.g. 16000")
    names = ("tables_dir", "allow_missing", "level", "fold")
    settings = {k: getattr(options, k) for k in names if getattr(options, k) is not None} | options_of(options.option)
    if options.export or options.push_to_hub or options.public:
        return _export(options, settings)
    if options.check:
        ignored = ("protocol", "fold", "sampling_rate")
        if given := [f"--{name.replace('_', '-')}" for name in ignored if getattr(options, name) is not None]:
            raise InputError(f"command line: --check does not use {', '.join(given)}; leave it out")
        if options.corpus == "synthetic" and options.data_dir and not Path(options.data_dir).exists():
            raise InputError(f"{options.data_dir}: no such folder; leave --check out to generate a corpus there")
        report = check_corpus(options.corpus, options.data_dir, progress=Progress("checking"), **settings)
        say(*report.lines())
        return 2 if report.problems else 0
    try:
        splits = load_corpus(options.corpus, options.data_dir, protocol=options.protocol, **settings)
    except UnusableRecordingsError as error:
        if options.sampling_rate and error.usable is not None:
            decode_all([error.usable], options.sampling_rate, None, error.problems, jobs=options.jobs)
        raise
    doubles = check_duplicates(splits, jobs=options.jobs)
    say(*_described(options.corpus, splits))
    for line in doubles:
        say(f"warning: {line}")
    if options.sampling_rate:
        progress = Progress("decoding")
        decode_all(list(splits.values()), options.sampling_rate, progress=progress, jobs=options.jobs)
    return 0


def _export(options: argparse.Namespace, settings: dict[str, Any]) -> int:
    """Write the corpus as Parquet, and upload it with --push-to-hub."""
    from laennec.corpora.hub.publish import export_corpus
    from laennec.corpora.load import corpus_class
    from laennec.hub.push_corpus import check_target, push_corpus

    if options.check:
        raise InputError(
            "command line: --check cannot be combined with --export or --push-to-hub; leave one of them out"
        )
    if options.public and not options.push_to_hub:
        raise InputError("command line: --public needs --push-to-hub REPO; add it, or leave --public out")
    rights = {"public": options.public, "may_redistribute": options.i_have_the_right_to_redistribute}
    if options.push_to_hub:
        corpus = corpus_class(options.corpus)
        if corpus.can_be_exported:
            say(f"terms of {corpus.title}: {corpus.licence}", f"redistribution: {corpus.redistribution}")
        check_target(options.push_to_hub, **rights)
    with ExitStack() as stack:
        folder = options.export
        if folder is None:
            place = cache_root() / "exports"
            with explain_write_errors(place):
                place.mkdir(parents=True, exist_ok=True)
                folder = f"{stack.enter_context(tempfile.TemporaryDirectory(dir=place))}/{options.corpus}"
        rules = {
            "protocol": options.protocol,
            "sampling_rate": options.sampling_rate,
            "progress": Progress("exporting"),
        }
        made = export_corpus(options.corpus, options.data_dir, folder, **rules, **settings)
        say(*_described(options.corpus, made.splits))
        if options.export:
            size = f"{len(made.manifest['files'])} Parquet files, {made.bytes / 1e6:.1f} MB"
            say(f"exported to {made.folder}: {size}; datasets.load_dataset({str(made.folder)!r})")
        if options.push_to_hub:
            say(f"pushed to {push_corpus(made.folder, options.push_to_hub, **rights)}")
    return 0


def options_of(pairs: Sequence[str]) -> dict[str, Any]:
    """The options of a corpus in `key=value` pairs; numbers, true, false, [lists] and "quoted texts" as such."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign:
            raise InputError(f"command line: --option {pair!r} has no value; write --option KEY=VALUE")
        if key in _WITH_FLAGS or not key.isidentifier():
            raise InputError(
                f"command line: --option {key} is not an option of a corpus; use the flag of that name, if there is one"
            )
        try:
            value = parse_yaml(text)
        except yaml.YAMLError:
            value = text
        quoted = text[:1] in ("'", '"')  # "5" is a text, and any other text is taken as it stands
        options[key] = value if quoted or isinstance(value, bool | int | float | list | dict) else text
    return options


def _described(corpus: str, splits: Any) -> list[str]:
    from laennec.corpora.load import corpus_class, provenance

    origin = provenance(splits)
    fingerprint, split = (str(origin.get(k))[:12] for k in ("corpus_fingerprint", "split_fingerprint"))
    lines = [f"corpus {corpus} {fingerprint}, protocol {origin.get('protocol')}, split {split}"]
    if origin.get("stamp"):
        lines.append(f"note: {origin['stamp']}")
    column = corpus_class(corpus).class_column
    for name, table in splits.items():
        counts = Counter(table[column][:])
        classes = [f"{counts[code]} {label}" for code, label in enumerate(table.features[column].names)]
        classes += [f"{counts[None]} unlabelled"] if counts[None] else []
        patients = set(table["patient_id"]) - {None}
        of = f"{len(patients)} patients" if patients else f"{len(set(table['recording_id']))} recordings"
        lines.append(f"{name}: {len(table)} cycles of {of}; {', '.join(classes)}")
    return lines
