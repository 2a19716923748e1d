"""Example sounds of the page, made by the synthetic corpus when the page starts.

Decisions: nothing is shipped, for no recording of a patient may be and a made one need not be. Each example comes
with its annotation, which is exact, so the page can show what was put in beside what the model hears.
"""

from dataclasses import dataclass
from pathlib import Path

from laennec.audio.cycles import read_annotation
from laennec.corpora.synthetic import write_corpus

_RATE_HZ = 8000
# a name, and the classes of cycles that its recording must hold, and none but these and "normal"
_WANTED = {
    "Normal breathing": set[str](),
    "Crackles": {"crackle"},
    "Wheezes": {"wheeze"},
    "Both": {"wheeze", "crackle"},
}


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        title: What is to be heard.
        recording: The sound file.
        annotation: Its cycles with what was put in.
    """

    title: str
    recording: Path
    annotation: Path


def write_examples(folder: str | Path) -> list[Example]:
    """Make the example sounds, in some tenths of a second.

    Args:
        folder: Where to; made if needed.

    Returns:
        The examples, always the same ones.
    """
    corpus = write_corpus(
        Path(folder) / "examples", patients=12, recordings_per_patient=1, cycles_per_recording=4, max_rate_hz=_RATE_HZ
    )
    found: dict[str, Example] = {}
    for recording in sorted(corpus.glob("*.wav")):
        annotation = recording.with_suffix(".txt")
        heard = {cycle.label for cycle in read_annotation(annotation)} - {"normal"}
        title = next((name for name, wanted in _WANTED.items() if wanted == heard), None)
        if title is not None:
            found.setdefault(title, Example(title, recording, annotation))
    return [found[title] for title in _WANTED if title in found]
