"""The command line: every stage as a command.

Decided here: nothing heavy is imported before a command runs, so that help answers at once. What a user can mend is
one line on standard error and exit code 2 (`--debug` shows the traceback); an interruption is 130.
"""

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from laennec.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: What stands behind `laennec`; None takes it from the process.

    Returns:
        The exit code: 0 done, 2 bad input (also where some files failed and others were answered), 130 interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    # the cells of a label-efficiency table are trainings: their settings can be given as to train
    trains = known.command in ("train", "pretrain") or getattr(known, "label_fraction", None) is not None
    if rest and not trains:
        parser.error(f"unknown argument {rest[0]}; see laennec {known.command} --help")
    if not sys.stderr.isatty():  # errors stand alone in files and pipes
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    known.rest, known.line = rest, shlex.join(["laennec", *arguments])
    try:
        with warnings.catch_warnings():
            if not known.debug:
                warnings.showwarning = _note  # type: ignore[assignment]
            return int(known.run(known) or 0)
    except KeyboardInterrupt:
        print("laennec: interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        line = _one_line(error)
        if line is None or known.debug:
            raise
        print(f"laennec: {line}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str | None:
    """What to tell a user about an error that is theirs to mend; None for one that is ours."""
    from laennec.writing import writing_error

    if isinstance(error, InputError):
        return " ".join(str(error).split())
    mended = writing_error(getattr(error, "filename", None) or "output", error)
    return None if mended is None else str(mended)


def _note(message: Warning | str, category: Any, filename: str, *_: Any) -> None:
    """A warning of ours as one line; those of libraries are for developers (--debug)."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        print(f"laennec: note: {' '.join(str(message).split())}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="laennec",
        description="Lung sounds: recordings -> respiratory cycles -> a crackle/wheeze model with honest scores.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], int | None], help: str, **settings: Any) -> argparse.ArgumentParser:
        # no abbreviations: --over would mean --overwrite to us and a setting of the recipe to its reader
        made = commands.add_parser(name, help=help, description=help, allow_abbrev=False, **settings)
        made.add_argument("--debug", action="store_true", help="show the traceback of an error")
        made.set_defaults(run=run)
        return made

    _prepare_options(command("prepare", _prepare, "read a corpus, count it, decode it into the cache"))
    epilog = "Any setting of the recipe can be given as --group.key value, e.g. --train.epochs 5."
    train = command("train", _train, "run a recipe", epilog=epilog)
    train.add_argument("recipe", help="a YAML recipe")
    train.add_argument("--overwrite", action="store_true", help="delete the run that the output folder holds")
    step = "pre-train a recipe's encoder on pairs of views, without labels"
    pretrain = command("pretrain", _pretrain, step, epilog=epilog.replace("train.epochs", "pretrain.epochs"))
    pretrain.add_argument("recipe", help="a YAML recipe with a section pretrain")
    pretrain.add_argument("--overwrite", action="store_true", help="delete the run that the output folder holds")
    _evaluate_options(command("evaluate", _evaluate, "score a run on its held-out part and write the report"))
    _export_options(command("export", _export, "write a run's model in a form to share, and check it"))
    _predict_options(command("predict", _predict, "answer recordings: a timeline of crackle and wheeze"))
    _bench_options(command("bench", _bench, "measure speed and memory as ratios to what one would use instead"))
    results = command("results", _results, "gather scores into a results file, or render the tables of documents")
    results.add_argument("paths", nargs="+", metavar="FOLDER_OR_MD", help="folders of evaluations, or documents (.md)")
    results.add_argument("--into", help="the results file that evaluations are gathered into")
    results.add_argument("--baseline", metavar="NAME", help="with --into: the recipe that the others are compared with")
    command("doctor", _doctor, "say what is installed, what runs here, and what is missing")
    return parser


def _prepare_options(prepare: argparse.ArgumentParser) -> None:
    prepare.add_argument("corpus", help="icbhi2017, sprsound, physionet2016, folder, hub or synthetic")
    prepare.add_argument("--data-dir", help="folder (or zip) with the recordings; a synthetic corpus is written there")
    prepare.add_argument(
        "--check", action="store_true", help="decode everything and list every problem; writes nothing"
    )
    prepare.add_argument("--protocol", help="how to split")
    prepare.add_argument("--sampling-rate", type=int, help="decode to this rate into the cache, e.g. 16000")
    prepare.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of one corpus alone: patients=16, annotations=cycles.csv, window_s=5, fold_column=fold; may be repeated",
    )
    _corpus_options(prepare)


def _evaluate_options(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("source", help="folder of a run, of an exported model, or a Hub id")
    evaluate.add_argument("--split", default="test", help="the part to score (default: test)")
    evaluate.add_argument("--corpus", help="another corpus than the run's")
    evaluate.add_argument("--data-dir", help="where the corpus lies, if not where the run found it")
    evaluate.add_argument("--protocol", help="how to split another corpus")
    evaluate.add_argument("--out", help="folder for the results (default: evaluation-SPLIT in the run's folder)")
    evaluate.add_argument("--base", help="where the base of a head-only model lies")
    evaluate.add_argument(
        "--draws",
        type=int,
        help="bootstrap draws (default: 1000); with --label-fraction: samples of each fraction (default: 3)",
    )
    evaluate.add_argument(
        "--label-fraction",
        metavar="F,F,...",
        help="train the run's encoder again with these shares of the labels, e.g. 0.01,0.1,0.5,1.0, and write the "
        "label-efficiency table; settings as for train, e.g. --train.epochs 5",
    )
    evaluate.add_argument(
        "--mode", metavar="linear,finetune", help="with --label-fraction: frozen encoder, all of it, or both (default)"
    )
    evaluate.add_argument(
        "--smoothing",
        default="none",
        metavar="auto|none|W",
        help="also score answers mixed with the mean of their recording: a strength W from 0 to 1, or auto, chosen on "
        "validation (default: none)",
    )
    _corpus_options(evaluate)


def _export_options(export: argparse.ArgumentParser) -> None:
    export.add_argument("run_folder", metavar="RUN", help="folder of a run")
    export.add_argument(
        "--format", default="full", help="head (a few kB, names its base), lora (head and adapters) or full (default)"
    )
    export.add_argument("--out", help="folder (default: export-FORMAT in the run's folder)")
    export.add_argument("--base", help="where the base of a head-only run lies now")
    export.add_argument("--base-name", help="the name a head-only export gives its base, e.g. its Hub id")


def _predict_options(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("model", help="folder of a run, of an exported model, or a Hub id")
    predict.add_argument("inputs", nargs="+", metavar="FILE_OR_DIR", help="recordings, or folders that hold some")
    predict.add_argument("--out", required=True, help="folder for the timelines")
    predict.add_argument("--format", default="json,csv", help="json, csv or both (default)")
    predict.add_argument("--window-s", type=float, default=3.0, help="length of a window in seconds (default: 3)")
    predict.add_argument("--hop-s", type=float, default=1.5, help="from window to window in seconds (default: 1.5)")
    predict.add_argument(
        "--annotation", help="answer the cycles of this file (or of FOLDER/<recording>.txt) instead of windows"
    )
    predict.add_argument(
        "--smoothing",
        default="none",
        metavar="auto|none|W",
        help="mix each answer with the mean of its recording: a strength W from 0 to 1, or auto, chosen on a run's "
        "validation cycles (default: none)",
    )
    predict.add_argument("--base", help="where the base of a head-only model lies")


def _bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("rows", nargs="*", help="which rows (default: all that can run here)")
    bench.add_argument("--data-dir", help="folder with icbhi2017_subset and sprsound, as far as they are there")
    bench.add_argument("--weights", help="a released EfficientAT checkpoint, for the rows that want real weights")
    bench.add_argument("--out", help="write the table as JSON here")
    bench.add_argument(
        "--repeats", type=int, default=5, help="how often each side is measured; the fastest counts (default: 5)"
    )


def _corpus_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tables-dir", help="folder with split, demographics and diagnosis tables, if not beside the recordings"
    )
    parser.add_argument("--fold", type=int, help="test fold, where the protocol has folds")
    parser.add_argument(
        "--level", help="sprsound: event (default) or record; physionet2016: recording (default) or window"
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        default=None,
        help="go on where the published corpus has more recordings",
    )


def _version() -> str:
    from laennec import __version__

    return f"laennec {__version__}"


def _say(text: str) -> None:
    """Print a line of a command's answer (once, under several processes)."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(text, flush=True)


def _without_foreign_bars() -> None:
    """Have transformers load and save weights without a bar of its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _overrides(rest: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` pairs."""
    given: dict[str, str] = {}
    items = iter(rest)
    for item in items:
        if not item.startswith("--"):
            raise InputError(f"command line: {item!r} is no setting; write --group.key value, e.g. --train.epochs 5")
        key, sign, value = item[2:].partition("=")
        if not sign:
            following = next(items, None)
            if following is None:
                raise InputError(f"command line: --{key} has no value; write --{key} VALUE")
            value = following
        given[key] = value
    return given


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs; numbers, true, false and [lists] as such."""
    import yaml

    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"command line: --option {pair!r} has no value; write --option KEY=VALUE")
    given = dict(pair.split("=", 1) for pair in pairs)
    options = {}
    for key, text in given.items():
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        options[key] = value if isinstance(value, bool | int | float | list | dict) else text
    return options


def _prepare(options: argparse.Namespace) -> int:
    from laennec.corpora import UnusableRecordingsError, check_corpus, decode_all, load_corpus

    names = ("tables_dir", "allow_missing", "level", "fold")
    settings = {k: getattr(options, k) for k in names if getattr(options, k) is not None} | _options(options.option)
    if options.check:
        settings.pop("fold", None)
        report = check_corpus(options.corpus, options.data_dir, progress=_progress("checking"), **settings)
        _say(report.text())
        return 2 if report.problems else 0
    try:
        parts = load_corpus(options.corpus, options.data_dir, protocol=options.protocol, **settings)
    except UnusableRecordingsError as error:
        if options.sampling_rate and error.usable is not None:
            decode_all([error.usable], options.sampling_rate, None, error.problems)
        raise
    _say(_described(options.corpus, parts))
    if options.sampling_rate:
        decode_all(list(parts.values()), options.sampling_rate, progress=_progress("decoding"))
    return 0


def _described(corpus: str, parts: Any) -> str:
    """What a corpus and its split are, a line each."""
    from laennec.corpora import provenance

    origin = provenance(parts)
    fingerprint, split = (str(origin.get(k))[:12] for k in ("corpus_fingerprint", "split_fingerprint"))
    lines = [f"corpus {corpus} {fingerprint}, protocol {origin.get('protocol')}, split {split}"]
    if origin.get("stamp"):
        lines.append(f"note: {origin['stamp']}")
    for name, table in parts.items():
        column = next((name for name in ("category", "heart_sound") if name in table.column_names), "label")
        labels = [*table.features[column].names, None]
        values = [None if v is None else labels[v] for v in table[column]]
        counts = {"unlabelled" if label is None else label: values.count(label) for label in labels}
        said = ", ".join(f"{n} {label}" for label, n in counts.items() if n or label != "unlabelled")
        patients = set(table["patient_id"]) - {None}
        of = f"{len(patients)} patients" if patients else f"{len(set(table['recording_id']))} recordings"
        lines.append(f"{name}: {len(table)} cycles of {of}; {said}")
    return "\n".join(lines)


def _train(options: argparse.Namespace) -> int:
    from laennec.training.config import load_recipe

    recipe = load_recipe(options.recipe, _overrides(options.rest))
    from laennec.training.experiment import train

    out = train(recipe, command=options.line, overwrite=options.overwrite)
    _say(f"run: {out}")
    _say(f"next: laennec evaluate {out}")
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    from laennec.training.config import load_recipe

    recipe = load_recipe(options.recipe, _overrides(options.rest), section="pretrain")
    from laennec.training.pretrain import pretrain

    out = pretrain(recipe, command=options.line, overwrite=options.overwrite)
    _say(f"encoder: {out / 'encoder'}")
    _say(f"next: laennec train {options.recipe} --encoder.weights {out / 'encoder'}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    names = ("data_dir", "protocol", "tables_dir", "fold", "level", "allow_missing")
    corpus = {"name": options.corpus, **{k: getattr(options, k) for k in names}}
    if options.label_fraction is not None:
        return _label_efficiency(options, corpus)
    if options.mode is not None:
        raise InputError("--mode says how to learn from fractions of the labels: give --label-fraction too")
    from laennec.training.score import score

    _without_foreign_bars()
    scored = score(
        options.source,
        split=options.split,
        corpus=corpus,
        out=options.out,
        base=options.base,
        command=options.line,
        draws=1000 if options.draws is None else options.draws,
        smoothing=options.smoothing,
    )
    _say(scored.summary)
    _say(f"report: {scored.folder / 'report.html'}")
    _say(f"predictions: {scored.folder / 'predictions.parquet'}")
    return 0


def _label_efficiency(options: argparse.Namespace, corpus: dict[str, Any]) -> int:
    from laennec.training.label_fractions import MODES, parse_fractions, parse_modes

    if options.smoothing != "none":
        raise InputError("--smoothing and --label-fraction do not go together: smooth one run at a time")
    fractions, modes = parse_fractions(options.label_fraction), parse_modes(options.mode or ",".join(MODES))
    from laennec.training.label_efficiency import label_efficiency

    _without_foreign_bars()
    made = label_efficiency(
        options.source,
        fractions=fractions,
        modes=modes,
        draws=3 if options.draws is None else options.draws,
        split=options.split,
        corpus=corpus,
        out=options.out,
        base=options.base,
        overrides=_overrides(options.rest),
        command=options.line,
        say=_say,
    )
    _say(made.summary)
    for ending in ("png", "csv", "json"):
        _say(f"{ending}: {made.folder / f'label_efficiency.{ending}'}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from laennec.sharing.export import export_run

    _without_foreign_bars()
    out = export_run(options.run_folder, options.out, options.format, options.base, options.base_name)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    _say(f"exported model: {out} ({size / 1000:.1f} kB, read back and compared)")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from laennec.sharing.predict import Predictor, predict
    from laennec.training.score import load_model
    from laennec.training.smoothed import parse_smoothing, resolve_smoothing

    _without_foreign_bars()
    parse_smoothing(options.smoothing)
    model, extractor = load_model(options.model, options.base)
    smoothing = resolve_smoothing(options.smoothing, options.model, model)
    if smoothing is not None:
        smoothing.give_to(model)
        of = "chosen on validation" if smoothing.chosen else "given"
        kept = "" if smoothing.fitted else "; the thresholds are the model's own, not those of smoothed answers"
        _say(f"smoothing over recordings: strength {smoothing.strength:g}, {of}{kept}")
    strength = 0.0 if smoothing is None else smoothing.strength
    predictor = Predictor(model, extractor, options.window_s, options.hop_s, strength)
    formats = [f.strip() for f in options.format.split(",") if f.strip()]
    done = predict(
        predictor,
        options.inputs,
        options.out,
        formats=formats,
        annotation=options.annotation,
        progress=_progress("predicting"),
    )
    for _, reason in done.failed:
        print(f"laennec: {reason}", file=sys.stderr)
    total = len(done.answered) + len(done.failed)
    said = f"{len(done.answered)} of {total} recordings, the others failed" if done.failed else f"{total} recordings"
    _say(f"predictions: {options.out} ({said})")
    return 2 if done.failed else 0


def _bench(options: argparse.Namespace) -> int:
    from laennec.bench import bench

    _say(bench(options.rows, options.data_dir, options.weights, options.out, options.repeats))
    return 0


def _results(options: argparse.Namespace) -> int:
    from laennec.sharing.results import collect, render

    documents = [p for p in options.paths if p.endswith(".md")]
    if options.into:
        _say(f"results: {collect([p for p in options.paths if p not in documents], options.into, options.baseline)}")
    elif len(documents) < len(options.paths):
        raise InputError("results: folders of evaluations need --into FILE")
    for document in documents:
        _say(f"{document}: {'as it was' if render(document) else 'rendered anew'}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from laennec.doctor import examine

    _say(examine())
    return 0


def _progress(title: str) -> Callable[[int, int], None] | None:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    bar = tqdm(desc=title, file=sys.stderr)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show
