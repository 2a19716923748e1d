"""`laennec benchmark`: enter a model or a file of predictions in a benchmark, or check result files."""

import argparse
from pathlib import Path

from laennec.cli.common import add_options, chosen, refuse_missing_model
from laennec.errors import InputError
from laennec.terminal import complain, say

_DECLARED = ("entry", "trained_on", "selection", "origin")


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec benchmark`."""
    parser.add_argument("name", metavar="sprsound|icbhi|cross|check", help="the benchmark; check: check result files")
    parser.add_argument(
        "sources",
        nargs="*",
        default=[],
        metavar="MODEL|PREDICTIONS",
        help="folder of a run, folder of an exported model, Hub id, or a file of predictions (.csv or .parquet with "
        "cycle_id, p_crackle, p_wheeze) (default: the model in the package); for check, result files",
    )
    parser.add_argument("--data-dir", help="folder of the complete corpus")
    add_options(parser, "--tables-dir")
    parser.add_argument("--out", metavar="FILE", help="the result file (default: benchmark-NAME.json)")
    parser.add_argument("--entry", help="name of the entry (default: that of the model or file)")
    parser.add_argument(
        "--trained-on", metavar="TEXT", help="the training data, as text (default: as the run recorded)"
    )
    parser.add_argument(
        "--selection",
        metavar="TEXT",
        help="the data on which epochs, thresholds and settings were chosen (default: as the run recorded)",
    )
    parser.add_argument("--origin", metavar="TEXT", help="where the entry comes from, e.g. repository, commit, file")


def run(options: argparse.Namespace) -> int:
    """Score an entry and write its result file, or check result files."""
    if options.name == "check":
        flags = chosen(options, "data_dir", "tables_dir", "out", *_DECLARED)
        if given := [name for name, value in flags.items() if value is not None]:
            raise InputError(f"--{given[0].replace('_', '-')}: check takes result files alone; leave it out")
        return _check(options.sources)
    from laennec.benchmark.definitions import benchmark_named
    from laennec.benchmark.submission import is_submission

    benchmark = benchmark_named(options.name)
    source, *others = options.sources or [None]
    if others:
        raise InputError(f"{others[0]}: a second entry; give one model or one file of predictions")
    if options.data_dir is None:
        raise InputError(f"--data-dir: name the folder of the corpus {benchmark.corpus}")
    if source is not None and not is_submission(Path(source)):
        refuse_missing_model(source)
    from laennec.benchmark.entry import enter

    out = options.out or f"benchmark-{options.name}.json"
    say(*enter(benchmark, source, out, **chosen(options, "data_dir", "tables_dir", *_DECLARED)))
    say(f"result: {out}")
    return 0


def _check(paths: list[str]) -> int:
    """Check result files; 2 where one is refused."""
    if not paths:
        raise InputError("name the result files to check")
    from laennec.benchmark.definitions import benchmark_named
    from laennec.benchmark.result_file import read_result

    refused = False
    for path in paths:
        try:
            result = read_result(path)
        except InputError as error:
            complain(str(error))
            refused = True
            continue
        missing = [name for name, scores in result.splits.items() if scores is None]
        say(
            f"{path}: {result.entry} on {result.benchmark}" + (f", without {', '.join(missing)}" if missing else ""),
            "  consistent: fingerprints, confusion, scores of decisions, patients, baselines and differences from them",
            "  cannot be recomputed without predictions: AUROC, average precision, scores within lengths and on the "
            "middle of cycles, intervals, calibration error, cost",
        )
        tests = benchmark_named(result.benchmark).tests
        unknown = [name for name, scores in result.splits.items() if scores and tests[name].classes is None]
        say(*(f"  {name}: cycles of each class and effective patients are not known here" for name in unknown))
    return 2 * refused
