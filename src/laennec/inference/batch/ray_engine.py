"""Prediction and embedding on a Ray cluster, for more recordings than one machine can process.

Decisions: recordings are read through fsspec, so they may be in an object store. Tasks download, decode and resample
them; actors that hold the model filter the sound and run the network, with the same samples as in one process. A block
of recordings writes one Parquet file, named by its recordings, after their timelines, so a repeated block writes the
same file. The file also has the state of each recording (inode and times, or etag) and the digest of its timeline, so
the folder shows which recordings are finished, and a timeline that a user corrected is not replaced. If a worker dies,
its block is tried again on another one, then each recording alone; likewise if Ray ends the pipeline with an error. A
recording that never succeeds is listed with the reason.
"""

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laennec.audio.recording import read_header, wave_file
from laennec.audio.streaming import open_recording
from laennec.errors import InputError
from laennec.files import json_text, read_parquet
from laennec.inference.batch.addresses import fetched, files_of, find_uris, put, said
from laennec.inference.batch.journal import first_difference
from laennec.inference.batch.recordings import (
    CHANGED,
    FAILED,
    BatchResult,
    Progress,
    annotation_of,
    digest_of,
    output_names,
    refuse_shared_annotation,
)
from laennec.inference.embed import Embedder, embedding_table
from laennec.inference.outputs import SUFFIXES, failures_text, prediction_table
from laennec.inference.predictor import Predictor
from laennec.processes import check_jobs

IDENTITY, TIMELINES = "laennec.identity.json", "laennec.timelines"
_FINISHED = b"laennec.recordings"
_BLOCK = 8  # recordings of a task
_LONGEST_S = 600.0  # longer recordings are decoded by the actor, in blocks
_TRIES = 3
_READERS = 16  # threads that wait for an object store
_DIED = "its worker died again and again (not enough memory, or a crash of the decoder); check this file, or run again"


@dataclass(frozen=True)
class RayWork:
    """The model, the settings and the kind of results."""

    predictor: Predictor
    provenance: dict[str, Any]  # model and settings, as plain values
    # the annotation, or a folder of annotations, on a path that every machine has; None for windows
    annotation: str | None = None
    embedder: Embedder | None = None  # to embed spans instead of predicting them

    @property
    def what(self) -> str:
        """The kind of results."""
        return "predictions" if self.embedder is None else "embeddings"

    @property
    def table(self) -> str:
        """The folder of the Parquet files."""
        return f"laennec.{self.what}"

    @property
    def torch(self) -> bool:
        """Whether the network runs in torch, which can use a GPU."""
        return self.predictor.backend.name == "torch"

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the model."""
        return self.predictor.fingerprint()

    def run(self, sound: Any, rate: int, annotation: Path | None) -> tuple[dict[str, Any] | None, pa.Table]:
        """The timeline (of a prediction) and the rows of a recording: a file, or sound at some rate."""
        if self.embedder is not None:
            source: Any = sound if isinstance(sound, Path) else wave_file(sound, rate)
            return None, embedding_table(Path(), self.embedder(source, annotation), None, self.provenance)
        timeline = {
            "model": {"fingerprint": self.fingerprint},
            **self.predictor(sound, annotation, sampling_rate=rate or None).to_dict(),
        }
        return timeline, prediction_table(timeline, self.provenance)


class _Worker:
    """An actor that runs the network on decoded recordings and writes the results."""

    def __init__(self, work: RayWork, out: str) -> None:
        self.work, self.out = work, out
        if work.torch:
            from laennec.training.devices import training_device

            work.predictor.model.to(training_device())  # an actor sees only its own GPUs

    def __call__(self, block: pa.Table) -> pa.Table:
        """Finish the recordings of a block; returns them, each with the reason why it failed or null."""
        outcomes, tables, finished = [], [], {}
        for row in block.to_pylist():
            reason = row["reason"]
            if reason is None:
                try:
                    table, timeline = self._finish(row)
                    tables.append(table)
                    finished[row["recording"]] = {"state": row["state"], **timeline}
                except InputError as error:
                    reason = str(error).replace("<bytes>", row["recording"])
                except Exception as error:  # what an object store's client raises, or the network on this sound
                    reason = f"{row['recording']}: {said(error)}"
            outcomes.append({"recording": row["recording"], "reason": reason})
        try:
            if tables:
                _write_part(self.out, self.work, pa.concat_tables(tables), finished)
        except Exception as error:
            for one in outcomes:
                one["reason"] = one["reason"] or f"{one['recording']}: its rows cannot be written ({said(error)})"
        return pa.Table.from_pylist(outcomes, _OUTCOME)

    def _finish(self, row: dict[str, Any]) -> tuple[pa.Table, dict[str, str]]:
        """Write the timeline of a recording; returns its rows, and name and digest of the timeline."""
        annotation = annotation_of(Path(row["recording"]), self.work.annotation)
        if row["sound"] is None:
            with fetched(row["recording"]) as path:
                timeline, table = self.work.run(path, 0, annotation)
        else:
            timeline, table = self.work.run(np.frombuffer(row["sound"], np.float32), row["rate"], annotation)
        written = {}
        if timeline is not None:
            there = {"recording": row["recording"], "source_sampling_rate": row["source_rate"]}
            timeline = {"recording": "", **timeline, **there}
            text = json_text(timeline, indent=1, ensure_ascii=False).encode(errors="backslashreplace")
            written = {"timeline": row["name"] + SUFFIXES["json"], "digest": hashlib.sha256(text).hexdigest()}
            put(f"{self.out}/{TIMELINES}/{written['timeline']}", text)
        named = pa.array([row["recording"]] * len(table), pa.string())
        return table.set_column(0, table.schema.field(0), named), written


def _write_part(out: str, work: RayWork, rows: pa.Table, finished: Mapping[str, Mapping[str, str]]) -> str:
    """Write the rows of some recordings and the state of each; returns the name of the file."""
    name = f"part-{hashlib.sha256(json.dumps(list(finished)).encode()).hexdigest()[:24]}.parquet"
    file, metadata = io.BytesIO(), {**rows.schema.metadata, _FINISHED: json_text(finished)}
    pq.write_table(rows.replace_schema_metadata(metadata), file, write_page_checksum=True)
    put(f"{out}/{work.table}/{name}", file.getvalue())
    return name


_OUTCOME = pa.schema([("recording", pa.string()), ("reason", pa.string())])
_DECODED = pa.schema(
    [
        *_OUTCOME,
        ("name", pa.string()),
        ("state", pa.string()),
        ("rate", pa.int64()),
        ("source_rate", pa.int64()),
        ("sound", pa.large_binary()),
    ]
)


def _decoded(block: pa.Table, rate: int) -> pa.Table:
    """Download and decode the recordings of a block; runs in a task."""
    rows = []
    for row in block.to_pylist():
        row |= {"reason": None, "rate": rate, "source_rate": None, "sound": None}
        try:
            with fetched(row["recording"]) as path:
                row["source_rate"], frames = read_header(path)
                if frames <= _LONGEST_S * row["source_rate"]:
                    with open_recording(path, rate) as stream:
                        row["sound"] = np.concatenate(list(stream.blocks())).tobytes()
        except InputError as error:
            row["reason"] = str(error).replace(str(path), row["recording"])
        except Exception as error:  # what an object store's client raises
            row["reason"] = f"{row['recording']}: cannot be read ({said(error)})"
        rows.append(row)
    return pa.Table.from_pylist(rows, _DECODED)


def run_on_ray(
    work: RayWork,
    inputs: Sequence[str],
    out: str,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BatchResult:
    """Predict or embed recordings on a Ray cluster; resume where an earlier call with the same settings stopped.

    Args:
        work: The model, the settings and the kind of results.
        inputs: Files and folders, as paths or addresses of fsspec (s3://, gs://, hf://).
        out: Folder for `laennec.predictions/*.parquet` or `laennec.embeddings/*.parquet`, `laennec.timelines/*.json`
            of predictions, `laennec.failed.csv` and `laennec.identity.json` with model and settings; a path that all
            machines share, or an address.
        workers: Number of actors with the model; where it runs in torch, the cluster's GPUs are shared out among them.
        overwrite: Replace results of another model or with other settings in `out`, other files of the same names, and
            corrected timelines of recordings that have changed.
        progress: Called with (recordings done, total of recordings).
    """
    check_jobs(workers)
    ray = _ray()
    out = out.rstrip("/") if "://" in out else str(Path(out).absolute())
    states = find_uris(inputs)
    uris = list(states)
    refuse_shared_annotation(work.annotation, [Path(uri) for uri in uris])
    states = {uri: _with_annotation(uri, state, work.annotation) for uri, state in states.items()}
    _claim_folder(out, work, overwrite)
    finished = _finished(out, work, states, overwrite)
    names = output_names([Path(uri) for uri in uris])
    todo = [{"recording": uri, "name": names[Path(uri)], "state": states[uri]} for uri in uris if uri not in finished]
    result = BatchResult(resumed=len(uris) - len(todo))
    failed: dict[str, str] = {}
    done, progress = result.resumed, progress or (lambda done, total: None)
    progress(done, len(uris))
    size, ended = _BLOCK, None
    while todo:
        ended = None
        try:
            for outcomes in _blocks(ray, work, todo, out, workers, size):
                failed |= {row["recording"]: row["reason"] for row in outcomes if row["reason"] is not None}
                done += len(outcomes)
                progress(done, len(uris))
        except _PipelineError as error:
            ended = str(error)
        finished = _finished(out, work, states, overwrite)
        settled, tried = finished | failed.keys(), len(todo)
        todo = [item for item in todo if item["recording"] not in settled]
        done = len(uris) - len(todo)
        if ended is None or len(todo) == tried:  # otherwise Ray ended a pipeline that made progress: repeat it
            if size == 1:
                break
            size = 1  # try each alone, because one may kill its workers
    for uri in uris:
        if uri in finished:
            result.predicted.append(uri)
        else:
            result.failed.append((uri, failed.get(uri) or f"{uri}: {ended or _DIED}"))
    files, place = files_of(f"{out}/{FAILED}")
    if result.failed:
        put(f"{out}/{FAILED}", failures_text(result.failed).encode(errors="backslashreplace"))
    elif files.exists(place):
        files.rm_file(place)
    return result


class _PipelineError(Exception):
    """Ray ended a pipeline with an error."""


def _blocks(
    ray: Any, work: RayWork, todo: list[Any], out: str, workers: int, size: int
) -> Iterator[list[dict[str, Any]]]:
    """Run the pipeline on blocks of `size` recordings; yields the outcomes of each block as it is finished."""
    _join_cluster(ray)
    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1  # a block that kills its workers does not stop the others
    context.enable_progress_bars = False
    gpus = ray.cluster_resources().get("GPU", 0) if work.torch else 0
    plan = ray.data.from_items(todo, override_num_blocks=math.ceil(len(todo) / size))
    plan = plan.map_batches(
        partial(_decoded, rate=int(work.predictor.extractor.sampling_rate)),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0.5,
    )
    with warnings.catch_warnings(action="ignore"):  # Ray 2.64 will have another setting for retries
        plan = plan.map_batches(
            _Worker,
            fn_constructor_args=(work, out),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0.5,
            # blocks that wait for an actor are lost with it, so recordings that are tried alone do not wait
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=min(size, 2)),
            ray_remote_args_fn=partial(_actor_settings, min(1, gpus / workers)),
        )
    try:
        for block in plan.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield block.to_pylist()
    except Exception as error:  # Ray's own and those of its workers, which have no class in common
        first, *others = str(error).strip().splitlines() or [type(error).__name__]
        # an error of a worker is a traceback, whose last line is its message
        raise _PipelineError((others[-1] if others and "ray::" in first else first)[:200]) from error


def _actor_settings(gpus: float) -> dict[str, Any]:
    """Ray retries without end by default; as an argument, `num_gpus` requires batches that cross blocks."""
    return {"max_restarts": -1, "max_task_retries": _TRIES, "num_gpus": gpus}


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("--engine ray needs Ray: pip install 'laennec[ray]'") from error
    return ray


def _join_cluster(ray: Any) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one here, unless this process is in one."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if not ray.is_initialized():
            if port.isdecimal():  # fails early: Ray tries for 15 minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError) as error:
        place = address or "a Ray cluster of this machine"
        raise InputError(f"{place}: cannot connect ({said(error)}); correct or unset RAY_ADDRESS") from error
    # Ray logs a traceback for a lost block, which is tried again here
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _claim_folder(out: str, work: RayWork, overwrite: bool) -> None:
    """Make the output folder that of this model and these settings."""
    identity = json.loads(json.dumps({**work.provenance, "annotation": work.annotation}))
    files, place = files_of(out)
    there = [name for name in (work.table, TIMELINES, FAILED) if files.exists(f"{place}/{name}")]
    problem = f"{out}/{there[0]}: was not written by an earlier run with this --out" if there else None
    if files.exists(f"{place}/{IDENTITY}"):
        try:
            before = json.loads(files.cat_file(f"{place}/{IDENTITY}"))
        except ValueError:
            before = None
        if before == identity:
            return
        what = first_difference(before, identity)
        problem = f"{out}: contains results with another model or other settings ({what})"
    if problem and not overwrite:
        raise InputError(f"{problem}; choose another --out, or pass --overwrite to replace what is there")
    for name in there:
        files.rm(f"{place}/{name}", recursive=True)
    put(f"{out}/{IDENTITY}", json_text(identity, ensure_ascii=False, indent=1).encode())


def _with_annotation(uri: str, state: str, annotation: str | None) -> str:
    """The state of a recording together with the content of its annotation."""
    with contextlib.suppress(OSError, ValueError):  # a worker reports what is wrong with the annotation
        digest = digest_of(annotation_of(Path(uri), annotation))
        return f"{state} {digest}" if digest else state
    return state


def _finished(out: str, work: RayWork, states: Mapping[str, str], overwrite: bool) -> set[str]:
    """The finished recordings of the folder; removes damaged files, repeated rows and rows of changed recordings."""
    files, place = files_of(f"{out}/{work.table}")

    def content_of(part: str) -> bytes:
        try:
            return bytes(files.cat_file(part))
        except Exception as error:
            raise InputError(f"{part}: cannot be read ({said(error)}); run the same command again") from error

    def read(part: str) -> dict[str, dict[str, str]]:
        try:
            with files.open(part, "rb") as file:
                return _finished_in(file)
        except Exception:  # damaged, or out of reach
            pass
        content = content_of(part)
        try:
            return _finished_in(io.BytesIO(content))
        except (pa.ArrowException, OSError, LookupError, TypeError, ValueError):
            return {}

    paths = sorted(files.glob(f"{place}/part-*.parquet"))
    with ThreadPoolExecutor(_READERS) as pool:
        parts = dict(zip(paths, pool.map(read, paths), strict=True))
    changed = {
        one["timeline"]: one["digest"]
        for known in parts.values()
        for recording, one in known.items()
        if states.get(recording, one["state"]) != one["state"] and "timeline" in one
    }
    if not overwrite:
        _refuse_corrected(out, changed)
    found: set[str] = set()
    written: set[str] = set()
    for part, known in parts.items():
        if part.rpartition("/")[2] in written:
            continue
        kept = {
            recording: one
            for recording, one in known.items()
            if recording not in found and states.get(recording, one["state"]) == one["state"]
        }
        if kept:
            found |= kept.keys()
            if len(kept) < len(known):
                rows = read_parquet(io.BytesIO(content_of(part)))
                rows = rows.filter(pc.is_in(rows["recording"], pa.array(kept)))
                written.add(_write_part(out, work, rows, kept))
        if len(kept) < len(known) or not known:
            files.rm_file(part)
    return found


def _finished_in(file: Any) -> dict[str, dict[str, str]]:
    """State and digest of each recording of a Parquet file; reads all their names, so that damage raises an error."""
    rows = read_parquet(file, ["recording"])
    finished = json.loads(rows.schema.metadata[_FINISHED])
    return {name: dict(finished[name]) for name in rows["recording"].unique().to_pylist()}


def _refuse_corrected(out: str, digests: Mapping[str, str]) -> None:
    """Refuse to replace timelines that were changed after they were written."""
    for name, digest in digests.items():
        files, place = files_of(f"{out}/{TIMELINES}/{name}")
        if files.exists(place) and hashlib.sha256(files.cat_file(place)).hexdigest() != digest:
            raise InputError(f"{out}/{TIMELINES}/{name}: {CHANGED}")
