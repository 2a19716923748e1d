"""A review: the spans of a folder of recordings in the order of a rule, and the answers of reviewers.

Decisions: windows do not overlap, because cycles of a corpus do not; the rest of a recording that is shorter than a
window is left out. Predictions and embeddings are kept in the folder of the review, by the model and the choice of
spans, so a second start computes nothing, and a later model continues with the answers to an earlier one. Every
reviewer goes through the same queue and does not see the others' answers; `share` divides it among them. A span that
overlaps one with an answer, such as a window of another model, is left out.
"""

import getpass
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laennec import DEFAULT_MODEL, __version__
from laennec.audio.segmentation import BreathSegmentation
from laennec.corpora.folder.annotation_table import read_table
from laennec.corpora.labels import names_of
from laennec.errors import InputError
from laennec.files import json_text, read_parquet, wait_for_lock
from laennec.inference.backends import load_for_prediction
from laennec.inference.batch.recordings import Progress, find_recordings
from laennec.inference.batch.run import predict
from laennec.inference.decisions import probabilities_of
from laennec.inference.embed import EMBEDDINGS, Embedder, embed
from laennec.inference.predictor import Predictor
from laennec.review.agreement import CLASSES, agreement_table
from laennec.review.answers import Answer, Answers, Span, check_reviewer
from laennec.review.queue import queue_order
from laennec.terminal import complain

PREDICTIONS = "laennec.predictions.parquet"


@dataclass(frozen=True)
class Item:
    """A span to be reviewed."""

    recording: str  # path below the folder of recordings
    start_s: float
    end_s: float
    path: Path
    probabilities: dict[str, float]  # of the model, by label
    patient_id: str | None

    @property
    def span(self) -> Span:
        """Recording, start and end."""
        return self.recording, self.start_s, self.end_s

    @property
    def key(self) -> str:
        """The span as text."""
        return f"{self.start_s:.3f} {self.end_s:.3f} {self.recording}"


class Review:
    """Review of what a model predicts for the recordings in a folder.

    Args:
        model: Folder of a run or an exported model, a Hub id, or a `Predictor`.
        folder: The recordings; nothing is written there.
        out: Folder of the review: a `folder` corpus of what was answered. See `laennec.review.answers`.
        rule: Order of the queue, see `laennec.review.queue.queue_order`.
        per_patient: Most spans of one patient in the queue; None for all.
        reviewer: Who answers; None for the user of this computer.
        labels: What can be answered, besides normal; None for the model's labels.
        patients: The patient of each recording: a CSV (columns recording, patient_id), or a regular expression that
            finds the patient in the name of a file. Without it each recording counts as a patient.
        members: Further models, for the rule disagreement; none are needed where the model is an ensemble.
        segment: Review segmented breaths instead of windows.
        annotation: Review annotated cycles: a folder with an annotation for each recording.
        share: Leave out what another reviewer has answered.
        disputed: Review only spans on which reviewers disagree.
        blind: Do not show the probabilities.
        seed: For random, and for ties.
        progress: Called with (recordings done, total of recordings).

    Raises:
        InputError: A folder, a label, a name or a rule cannot be used.
    """

    def __init__(
        self,
        model: str | Path | Predictor = DEFAULT_MODEL,
        folder: str | Path = ".",
        out: str | Path = "review",
        *,
        rule: str = "uncertain",
        per_patient: int | None = 5,
        reviewer: str | None = None,
        labels: Sequence[str] | None = None,
        patients: str | Path | None = None,
        members: Sequence[str | Path | Predictor] = (),
        segment: bool = False,
        annotation: str | Path | None = None,
        share: bool = False,
        disputed: bool = False,
        blind: bool = False,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        here, there = Path(folder).resolve(), Path(out).resolve()
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise InputError(f"{out}: in the folder of recordings, or around it; give --out a folder beside {folder}")
        self.folder, self.rule, self.share, self.disputed, self.blind = Path(folder), rule, share, disputed, blind
        self.reviewer = check_reviewer(reviewer or getpass.getuser())
        self.recordings = _recordings(self.folder)
        self.annotation, self.progress = annotation, progress
        alone = rule == "disagreement" and not members
        self.predictor = self._predictor(model, segment, None, "torch" if alone else "auto")
        if alone and not getattr(getattr(self.predictor.model, "head", None), "members", 0):
            raise InputError(
                f"rule disagreement: {model} is not an ensemble in torch; name one (laennec ensemble), give further "
                "models (--members), or choose another rule"
            )
        window_s = None if self.predictor.whole else self.predictor.window_s
        predictors = [self.predictor, *(self._predictor(member, segment, window_s) for member in members)]
        model_labels = self.predictor.model.config.label_names
        self.labels = _answer_labels(labels or model_labels)
        patient_of = _patients(patients, self.recordings)
        self.answers = Answers(out)
        tables = [self._table(one) for one in predictors]
        probabilities = np.stack([one[[f"{label}_probability" for label in model_labels]] for one in tables])
        embeddings = None
        if rule == "diverse" or alone:
            embeddings = np.stack(self._table(self.predictor, embeddings=True)["embedding"].tolist())
        self.model = self.predictor.fingerprint()
        spans = tables[0][["recording", "start_s", "end_s"]].itertuples(index=False, name=None)

        def named(row: list[float]) -> dict[str, float]:
            return dict(zip(model_labels, row, strict=True))

        self.items = [
            Item(name, start_s, end_s, self.recordings[name], named(row), patient_of.get(name))
            for (name, start_s, end_s), row in zip(spans, probabilities[0].tolist(), strict=True)
        ]
        self.queue = queue_order(
            probabilities[0],
            rule,
            members=self._by_member(embeddings) if alone else probabilities,
            embeddings=embeddings,
            patients=[item.patient_id or item.recording for item in self.items],
            at_most_per_patient=None if disputed else per_patient,
            seed=seed,
        )
        self.current: dict[str, Item] = {}

    def __repr__(self) -> str:
        patients = len({item.patient_id or item.recording for item in self.items})
        queue = f"{self.total()} of {len(self.items)} spans, {patients} patients, rule {self.rule}"
        return f"{queue}; {self.done()} answered by {self.reviewer}"

    def next(self, reviewer: str | None = None) -> Item | None:
        """The first span in the queue that the reviewer has not answered; None at the end."""
        who = self._who(reviewer)
        self.current.pop(who, None)
        if (item := next(self._left(who), None)) is not None:
            self.current[who] = item
        return item

    def _left(self, who: str) -> Iterator[Item]:
        """What a reviewer has still to answer."""
        active, by_span = self.answers.active(), self.answers.by_span()
        left_out = {answer.span for answer in active if answer.reviewer == who or self.share}
        settled = {row.span for row in self.answers.agreed()} if self.disputed else set()
        of_recording: dict[str, list[Span]] = {}
        for span in by_span:
            of_recording.setdefault(span[0], []).append(span)
        for item in map(self.items.__getitem__, self.queue):
            if item.span in left_out:
                continue
            if item.span in by_span:
                if item.span not in settled:
                    yield item
            elif not self.disputed and not _overlaps(item, of_recording.get(item.recording, [])):
                yield item

    def answer(self, *labels: str, item: Item | None = None, reviewer: str | None = None) -> Answer | None:
        """Keep the answer to a span, by default to the one that `next` returned; see `Answers.add`.

        Args:
            *labels: Labels; or "normal", "both" (crackle and wheeze) or "skip" alone.
            item: The span.
            reviewer: Who answers; None for the reviewer of the review.

        Returns:
            The answer; None where this reviewer has answered this span already, so that a key that is pressed twice
            answers once.
        """
        who = self._who(reviewer)
        item = item or self.current.get(who)
        if item is None:
            raise InputError("there is no span to answer; call next() first")
        given = None if labels == ("skip",) else self._labels(labels)
        if any((answer.reviewer, answer.span) == (who, item.span) for answer in self.answers.active()):
            return None
        said = Answer(*item.span, given, who, self.model, self.rule, item.probabilities, item.patient_id)
        return self.answers.add(said, item.path)

    def undo(self, reviewer: str | None = None) -> Answer | None:
        """Take back the reviewer's last answer, also one of an earlier start; its span is the next one again."""
        return self.answers.undo(self._who(reviewer))

    def agreement(self) -> pd.DataFrame:
        """How far reviewers agree; see `laennec.review.agreement.agreement_table`."""
        return agreement_table(self.answers.active(), self.labels)

    def done(self, reviewer: str | None = None) -> int:
        """How many spans of the queue the reviewer has answered or skipped."""
        queue = {self.items[row].span for row in self.queue}
        return sum(a.reviewer == self._who(reviewer) and a.span in queue for a in self.answers.active())

    def total(self, reviewer: str | None = None) -> int:
        """How many spans of the queue there are for the reviewer, including the answered ones."""
        return self.done(reviewer) + sum(1 for _ in self._left(self._who(reviewer)))

    def page(self) -> Any:
        """The page as `gradio.Blocks`, to be launched."""
        from laennec.review.page import review_blocks

        return review_blocks(self)

    def _who(self, reviewer: str | None) -> str:
        return check_reviewer(reviewer or self.reviewer)

    def _labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels that an answer names, in the order of the review."""
        classes = {"normal": ()} | ({"both": CLASSES} if set(CLASSES) <= set(self.labels) else {})
        given = classes.get(labels[0], labels) if len(labels) == 1 else labels
        if not labels or not set(given) <= set(self.labels):
            known = ", ".join([*classes, *self.labels])
            raise InputError(f"answer {', '.join(labels)!r}: give one of {known} or skip, or several labels")
        return tuple(label for label in self.labels if label in given)

    def _by_member(self, embeddings: Any) -> Any:
        """Probabilities (members, spans, labels) of the members of an ensemble."""
        from laennec.ensemble import member_logits  # needs torch

        model, fitted_on = self.predictor.model, self.predictor.decision_for(self.annotation is not None)["fitted_on"]
        return np.stack([probabilities_of(model.config, one, fitted_on) for one in member_logits(model, embeddings)])

    def _predictor(
        self, model: str | Path | Predictor, segment: bool, window_s: float | None, backend: str = "auto"
    ) -> Predictor:
        if isinstance(model, Predictor):
            return model
        loaded = load_for_prediction(model, backend=backend)
        predictor = Predictor(*loaded, window_s, segmentation=BreathSegmentation() if segment else None)
        return predictor if segment or predictor.whole else Predictor(*loaded, predictor.window_s, predictor.window_s)

    def _table(self, predictor: Predictor, embeddings: bool = False) -> pd.DataFrame:
        """Predictions or embeddings of a model, one row for each span; computed once for a model and its spans."""
        predicted = predictor.identity(self.annotation is not None)
        identity = json_text([__version__, predictor.fingerprint(), predicted], sort_keys=True).encode()
        out = self.answers.folder / ("embeddings" if embeddings else "predictions") / sha256(identity).hexdigest()[:12]
        more: dict[str, Any] = {"annotation": self.annotation, "progress": self.progress}
        with wait_for_lock(out):
            if embeddings:
                done = embed(Embedder(predictor), [self.folder], out, **more)
            else:
                done = predict(predictor, [self.folder], out, formats=["parquet"], **more)
        complain(*(reason for _, reason in done.failed))
        if not done.predicted:
            raise InputError(f"{self.folder}: no recording could be read; the lines above say why")
        names = {os.fsencode(path).decode(errors="replace"): name for name, path in self.recordings.items()}
        table = read_parquet(out / (EMBEDDINGS if embeddings else PREDICTIONS)).to_pandas()
        table["recording"] = table["recording"].map(names)
        place = table["start_s"] / predictor.window_s
        # the last window of a recording may overlap another
        return table[(place - place.round()).abs() < 1e-3] if predicted["spans"]["from"] == "windows" else table


def _recordings(folder: Path) -> dict[str, Path]:
    """The recordings by their path below the folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of the recordings")
    found = {path.relative_to(folder).as_posix(): path for path in find_recordings([folder])}
    seen: dict[Path, Path] = {}
    for name, path in found.items():
        if (other := seen.setdefault(Path(name).with_suffix(""), path)) != path:
            raise InputError(f"{path}: a second recording of this name beside {other.name}; remove or rename one")
    return found


def _patients(given: str | Path | None, recordings: Mapping[str, Path]) -> dict[str, str]:
    """The patient of each recording that has one."""
    if given is None:
        return {}
    named: dict[str, str] = {}
    if Path(given).is_file():
        table = read_table(Path(given), unlabelled=True)
        rows = {row.get("recording", ""): row.get("patient_id", "") for _, row in table.rows}
        for name in recordings:
            named[name] = next((rows[key] for key in (name, Path(name).name, Path(name).stem) if rows.get(key)), "")
    else:
        try:
            matches = {name: re.search(str(given), Path(name).name) for name in recordings}
        except re.error as error:
            raise InputError(f"--patients {given}: no such file, and no regular expression ({error})") from error
        named = {name: match[match.re.groups and 1] for name, match in matches.items() if match}
    if lost := [name for name in recordings if not named.get(name)]:
        raise InputError(f"--patients {given}: no patient for {len(lost)} recordings, such as {lost[0]}; correct it")
    return named


def _answer_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels as annotations spell them, without normal."""
    wanted = [label.strip() for label in labels if label.strip().casefold() != "normal"]
    names = {label: names_of("--labels", None, label) for label in wanted}
    if wrong := [label for label in wanted if not re.fullmatch(r"\w[^;,+|]*", label) or not names[label]]:
        raise InputError(f"label {wrong[0]!r}: cannot be the name of a label; begin with a letter, without ; , + or |")
    return tuple(dict.fromkeys(name for label in wanted for name in names[label] or ()))


def _overlaps(item: Item, spans: Iterable[Span]) -> bool:
    return any(min(item.end_s, end_s) - max(item.start_s, start_s) > 0.002 for _, start_s, end_s in spans)
