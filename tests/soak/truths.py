"""Reproducibility and resuming of all kinds of recipes, and splits of random corpora.

    python tests/soak/truths.py --corpora 2000 --out docs/results/reliability.json

Each kind of recipe (tests/ways.py) runs three times: unchanged; with other numbers of workers, other evaluation batches
and an empty cache; and stopped every few steps until it ends. The results are compared bit by bit.
"""

import contextlib
import io
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "invariants"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import parser_of, put

from runs import what_it_left
from ways import settings_of, ways

TINY = {
    "name": "tiny",
    "features": {"preset": "song2021", "length": "natural"},
    "encoder": {"type": "cnn", "config": {"channels": [4, 8]}},
    "train": {"epochs": 2, "batch_size": 8, "selection_metric": "loss"},
}


def bits_that_differ(one: tuple[Any, ...], other: tuple[Any, ...]) -> int:
    """Number of differing bits of the weights, plus one each if the predictions or the records differ."""
    weights = one[0].keys() ^ other[0].keys()
    found = len(weights) + sum(left != right for left, right in zip(one[1:], other[1:], strict=True))
    for name in one[0].keys() & other[0].keys():
        pairs = zip(one[0][name], other[0][name], strict=True)
        found += sum((left ^ right).bit_count() for left, right in pairs)
    return found


def make_ast(folder: Path) -> Path:
    """A tiny AST with random weights."""
    import torch
    from transformers import ASTConfig

    from laennec.encoders import AstEncoder

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    AstEncoder._from_config(ASTConfig(**sizes, max_length=256, layer_norm_eps=1e-6)).save_pretrained(folder)
    return folder


def stopped_and_resumed(run: Any, out: Path) -> int:
    """Stop and resume a run after a few steps until it ends; return the number of stops."""
    from test_resume import StopAfter

    from laennec.training.trainer import LaennecTrainer

    original, stops = LaennecTrainer.train, 0

    def interrupted(self: Any, *arguments: Any, **settings: Any) -> Any:
        self.add_callback(StopAfter(stops % 7 + 1))
        return original(self, *arguments, **settings)

    LaennecTrainer.train = interrupted  # type: ignore[method-assign]
    try:
        while not (out / "run.json").exists() and stops < 90:
            with contextlib.suppress(KeyboardInterrupt):
                stops += 1
                run(out.name, "cache", save_steps=1)
    finally:
        LaennecTrainer.train = original  # type: ignore[method-assign]
    return stops - 1


def bits(place: Path, out: Path | None) -> None:
    """Write two rows: same seed, and resuming."""
    from laennec.corpora.synthetic import write_corpus
    from laennec.training.recipe import Recipe
    from laennec.training.run import train

    small = {"patients": 16, "recordings_per_patient": 1, "cycles_per_recording": 4, "max_rate_hz": 4000}
    folder = write_corpus(place / "corpus", **small)
    tiny = {**TINY, "corpus": {"name": "synthetic", "data_dir": str(folder), "protocol": "patient-60-20-20"}}
    kinds = ways(make_ast(place / "ast"))
    again = resumed = stops = 0
    begun = time.perf_counter()
    for number, (name, way) in enumerate(kinds.items()):

        def run(folder: str, cache: str, way: Any = way, **train_settings: Any) -> Any:
            os.environ["LAENNEC_CACHE"] = str(place / f"{cache} {folder[0]}")
            settings = {**settings_of(tiny, way, **train_settings), "output_dir": str(place / folder)}
            with contextlib.redirect_stdout(io.StringIO()):
                return what_it_left(train(Recipe(**settings)))

        straight = run(f"a{number}", "cache")
        other = bits_that_differ(straight, run(f"b{number}", "cold", workers=1 + 3 * (number % 2), **OTHERS))
        stops += stopped_and_resumed(run, place / f"c{number}")
        later = bits_that_differ(straight, what_it_left(place / f"c{number}"))
        print(f"  {name}: {other} and {later} bits differ", flush=True)
        again, resumed = again + other, resumed + later
    figures = {"kinds of recipe": len(kinds), "runs compared": 2 * len(kinds), "bits that differ": again}
    promise = "Same seed, same bits: workers, evaluation batches and what the cache holds do not matter"
    put(out, "same bits", promise, figures, again == 0, begun)
    figures = {"kinds of recipe": len(kinds), "stops": stops, "bits that differ": resumed}
    promise = "A training that is interrupted and resumed gives the same bits as an uninterrupted one"
    put(out, "resume", promise, figures, resumed == 0 and stops > 0, begun)


OTHERS = {"evaluation_batch_size": 7}


def splits(corpora: int, out: Path | None) -> None:
    """Write one row: splits of random corpora by every protocol that keeps patients or recordings apart."""
    import test_leak_guard
    from hypothesis import settings

    begun, count, made = time.perf_counter(), 0, 0
    original = test_leak_guard.split

    def counted(*arguments: Any) -> Any:
        nonlocal count, made
        result = original(*arguments)
        count, made = count + 1, made + (result is not None)
        return result

    test_leak_guard.split = counted
    held = True
    try:
        any_corpus = test_leak_guard.ANY_CORPUS(test_leak_guard.keeps_its_promise)
        settings(max_examples=corpora, deadline=None)(any_corpus)()
    except AssertionError as error:
        held = False
        print(error, flush=True)
    figures = {"random corpora": count, "of these could be split": made, "promises broken": int(not held)}
    put(out, "leak guard", "Splits share no patient or recording that their protocol keeps apart", figures, held, begun)


def main() -> None:
    """Run all tests and write the rows."""
    parser = parser_of(__doc__)
    parser.add_argument("--corpora", type=int, default=2000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    splits(options.corpora, options.out)
    with tempfile.TemporaryDirectory() as scratch:
        bits(Path(scratch), options.out)


if __name__ == "__main__":
    main()
