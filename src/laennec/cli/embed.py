"""`laennec embed`: embed the spans of recordings, or the cycles of a corpus."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laennec import DEFAULT_MODEL
from laennec.cli.common import CORPUS, add_options, add_paths, chosen, refuse_addresses, refuse_missing_model
from laennec.cli.predict import listed, model_and_inputs, run_ray, say_outcome
from laennec.cli.prepare import options_of
from laennec.errors import InputError
from laennec.extension import is_dotted_name
from laennec.progress import Progress

if TYPE_CHECKING:
    from laennec.inference.embed import Rows

_CORPUS = ("data_dir", "protocol", "tables_dir", "fold", "level", "allow_missing", "option")


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec embed`."""
    add_paths(parser, "; or the name of a corpus or a recipe, for its cycles")
    parser.add_argument("--out", required=True, help="output folder")
    parser.add_argument(
        "--format", default="parquet", help="files of each recording: parquet, npz or both (default: parquet)"
    )
    add_options(parser, "--window-s", "--hop-s", "--backend")
    parser.add_argument(
        "--annotation", help="embed annotated cycles instead of windows: a file, or a folder, as for laennec predict"
    )
    parser.add_argument(
        "--layer",
        type=int,
        help="layer of the encoder, from 1 or from -1 backwards; the mean over its tokens (default: the embedding that "
        "the head takes)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace embeddings of another model or other settings in --out, and other files of the same names",
    )
    add_options(parser, "--base", "--jobs", "--engine", "--protocol", "--option", *CORPUS)
    add_options(parser, "--data-dir", help="folder or zip file of the corpus")


def run(options: argparse.Namespace) -> int:
    """Embed and write the results; exit code 2 if some recordings failed."""
    refuse_addresses(options)
    source, inputs, rows = _source_and_inputs(options)
    if rows is not None and (options.annotation, options.window_s, options.hop_s) != (None, None, None):
        raise InputError("--annotation, --window-s and --hop-s are for recordings; a corpus has its own cycles")
    from laennec.inference.backends import load_for_prediction
    from laennec.inference.embed import Embedder, embed
    from laennec.inference.predictor import Predictor

    backend = "torch" if options.backend == "auto" and options.layer is not None else options.backend
    model, extractor = load_for_prediction(source, options.base, backend)
    predictor = Predictor(model, extractor, options.window_s, options.hop_s, backend=backend)
    embedder = Embedder(predictor, options.layer)
    if options.engine == "ray":
        if rows is not None or options.format != "parquet":
            raise InputError("--engine ray embeds recordings, into Parquet; leave --format and the corpus out")
        from laennec.inference.batch.ray_engine import RayWork

        places = predictor.identity(options.annotation is not None)["spans"]
        work = RayWork(predictor, embedder.provenance(places), options.annotation, embedder)
        return run_ray(options, work, inputs)
    done = embed(
        embedder,
        inputs if rows is None else rows,
        options.out,
        formats=listed(options.format),
        progress=Progress("embedding"),
        **chosen(options, "annotation", "overwrite", "jobs"),
    )
    return say_outcome("embeddings", options.out, done)


def _source_and_inputs(options: argparse.Namespace) -> "tuple[str, list[str], dict[Any, Rows] | None]":
    """The model, and the recordings or the cycles of a corpus."""
    *first, last = options.paths
    table = _corpus_of(last)
    if table is None:
        if unused := [name for name in _CORPUS if getattr(options, name)]:
            raise InputError(f"--{unused[0].replace('_', '-')} is for a corpus; name one, or leave it out")
        return (*model_and_inputs(options.paths), None)
    if len(first) > 1:
        raise InputError(f"{first[1]}: recordings and a corpus cannot be embedded together; give one of them")
    source = first[0] if first else DEFAULT_MODEL
    if first:
        refuse_missing_model(source)
    from laennec.corpora.load import load_corpus
    from laennec.inference.embed import cycles_of

    given = {name: getattr(options, name) for name in _CORPUS[:-1] if getattr(options, name) is not None}
    return source, [], cycles_of(load_corpus(**(table | given | options_of(options.option))))


def _corpus_of(name: str) -> dict[str, Any] | None:
    """The arguments of `load_corpus` for a corpus or a recipe; None where the name is neither."""
    if Path(name).is_dir() or (Path(name).exists() and Path(name).suffix != ".yaml"):
        return None
    from laennec.corpora.load import CORPORA
    from laennec.training.recipe import Recipe
    from laennec.training.recipe.reading import find_recipe

    if name in CORPORA or is_dotted_name(name):
        return {"corpus": name}
    try:
        recipe = Recipe.from_yaml(find_recipe(name))
    except InputError:
        if Path(name).suffix == ".yaml":
            raise
        return None
    c = recipe.corpus
    if c.corpora:
        raise InputError(f"{name}: a recipe of several corpora; embed one at a time, by its name")
    names = ("data_dir", "protocol", "fold", "validation_fraction", "tables_dir", "allow_missing", "level")
    return {"corpus": c.name, "seed": c.split_seed, **{k: getattr(c, k) for k in names}, **c.options}
