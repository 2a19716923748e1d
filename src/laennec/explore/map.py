"""A map of an index, as one self-contained HTML file.

Decisions: positions are t-SNE of the normalised embeddings with a fixed seed, at most some thousand spans. The page
also shows linear probes of the embedding, because a picture of clusters misleads. It loads nothing from a network: it
embeds the sounds of randomly drawn spans as MP3, up to a stated size; other spans link to their recordings on this
machine. Sounds are raised to one peak level, so that quiet ones are audible.
"""

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import soundfile

from laennec import __version__
from laennec.audio.recording import DecodeError, Waveform
from laennec.audio.streaming import open_recording, passing_cycles
from laennec.errors import InputError
from laennec.evaluation.geometry import embedding_map
from laennec.evaluation.report.details import playing_gain_db
from laennec.explore.index import EmbeddingIndex
from laennec.explore.probes import Probe, probes, verdict
from laennec.files import atomic_write
from laennec.progress import track
from laennec.rendering import data_uri, plain, render_template

MOST_POINTS, SOUND_MB = 2000, 12.0
_RATE_HZ, _MOST_S, _BYTES_PER_S = 16_000, 6.0, 4900  # of a sound in the page
_COLUMNS = {"label": "label", "patient": "patient_id", "device": "device", "place": "chest_location"}


def write_map(
    index: EmbeddingIndex, out: str | Path, *, points: int = MOST_POINTS, sound_mb: float = SOUND_MB, seed: int = 0
) -> list[Probe]:
    """Write the map of an index, with the table of its probes.

    Args:
        index: The spans; `EmbeddingIndex.join` adds the columns that can colour them.
        out: The HTML file.
        points: Largest number of spans on the map; the draw is stratified by label.
        sound_mb: Largest size of all sounds in the page, in MB (about 200 s of sound a MB).
        seed: Of the draw and of t-SNE.

    Returns:
        The probes of the table.

    Raises:
        InputError: There are fewer than ten spans, or the page cannot be written.
    """
    if points < 10 or sound_mb < 0:
        raise InputError(f"points {points}, sound {sound_mb:g} MB: give 10 points or more, and a size of 0 or more")
    labels = index.rows["label"] if "label" in index.rows else pd.Series([None] * len(index))
    placed = embedding_map(index.embeddings, labels.astype(str).tolist(), most=points, seed=seed)
    if placed is None:
        raise InputError(f"a map needs 10 spans; the index has {len(index)}")
    rows, positions = placed
    found = probes(index.embeddings, index.rows, seed)
    shown = index.rows.iloc[rows].reset_index(drop=True)
    predicted = index.probabilities()
    data = {
        "x": np.round(positions[:, 0], 4).tolist(),
        "y": np.round(positions[:, 1], 4).tolist(),
        "span": [[round(a, 3), round(b, 3)] for a, b in zip(shown["start_s"], shown["end_s"], strict=True)],
        "recording": [plain(Path(str(name)).name) for name in shown["recording"]],
        "sound": sounds(shown, Path(out).absolute().parent, sound_mb, seed),
        "columns": {
            name: _texts(shown[of]) for name, of in _COLUMNS.items() if of in shown and shown[of].notna().any()
        },
        "probabilities": {}
        if predicted is None
        else {name: np.round(predicted[rows, k], 3).tolist() for k, name in enumerate(index.label_names)},
    }
    held = sum(sound.startswith("data:") for sound in data["sound"])
    page = render_template(
        "map.html",
        data=data,
        probes=[(probe, _bar(probe)) for probe in found],
        verdict=verdict(found),
        facts={"points": len(rows), "spans": len(index), "sounds": held, "seconds": _MOST_S, "version": __version__}
        | {"recordings": index.rows["recording"].nunique(), "patients": index.rows["patient_id"].nunique()}
        | {"model": str(index.provenance.get("model"))[:12], "layer": index.provenance.get("layer"), "seed": seed},
    )
    with atomic_write(out) as file:
        file.write(page)
    return found


def sounds(rows: pd.DataFrame, folder: Path, most_mb: float, seed: int) -> list[str]:
    """The sound of each span: a data URI up to a total size, then a link into its recording, relative to a folder."""
    found, used = [_link(row, folder) for row in rows.itertuples()], 0
    order = np.random.default_rng(seed).permutation(len(rows))
    ends_s = np.minimum(rows["end_s"], rows["start_s"] + _MOST_S).to_numpy()
    expected = np.cumsum((ends_s - rows["start_s"].to_numpy())[order]) * _BYTES_PER_S
    drawn = np.sort(order[expected <= most_mb * 1e6])
    spans = list(zip(rows["start_s"].tolist(), ends_s.tolist(), strict=True))
    places_of: dict[str, list[int]] = {}
    for place in drawn.tolist():
        places_of.setdefault(str(rows["recording"].iloc[place]), []).append(place)
    for path, places in track(places_of.items(), "sounds of the map", len(places_of)):
        # a recording may be gone or damaged: its spans keep their links
        with suppress(DecodeError, OSError), open_recording(path, _RATE_HZ, allow_silent=True) as stream:
            for number, sound in passing_cycles(stream, [spans[place] for place in places]):
                address = _mp3(sound.own)
                used += len(address)
                if used <= most_mb * 1e6:
                    found[places[number]] = address
    return found


def _mp3(sound: Waveform) -> str:
    """A sound as a data URI."""
    file = io.BytesIO()
    loud = np.clip(sound * 10 ** (playing_gain_db(sound) / 20), -1, 1)
    soundfile.write(file, loud.astype(np.float32), _RATE_HZ, format="MP3")
    return data_uri("audio/mpeg", file.getvalue())


def _link(row: Any, folder: Path) -> str:
    """The span in its file, as a relative address with a media fragment."""
    path = os.path.relpath(os.path.abspath(row.recording), folder)
    return f"{quote(Path(path).as_posix())}#t={row.start_s:.3f},{row.end_s:.3f}"


def _texts(column: pd.Series) -> list[str]:
    return ["unknown" if pd.isna(value) else plain(value) for value in column]


def _bar(probe: Probe) -> dict[str, float] | None:
    """Left end and width of a probe's bar and interval, in percent of the axis from chance (0.5) to 1."""
    if probe.auroc is None:
        return None
    low, high = probe.interval or (probe.auroc, probe.auroc)
    left, width, right = (min(max(200 * (value - 0.5), 0.0), 100.0) for value in (low, probe.auroc, high))
    return {"width": round(width, 1), "low": round(left, 1), "span": round(right - left, 1)}


def lines(found: list[Probe]) -> Iterator[str]:
    """The table of probes for a terminal."""
    for probe in found:
        bounds = f" [{probe.interval[0]:.2f}, {probe.interval[1]:.2f}]" if probe.interval else ""
        score = "not measured" if probe.auroc is None else f"{probe.auroc:.2f}{bounds}"
        yield f"  {probe.name:16} {score:20} {probe.note}"
