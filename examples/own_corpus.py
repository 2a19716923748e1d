"""An own corpus: a class outside the package, loaded from Python and named in a recipe.

The folder holds WAV files and `cycles.csv` with one row per respiratory cycle:

    file,patient,device,start_s,end_s,crackle,wheeze

Run it with `python examples/own_corpus.py FOLDER`.
"""

import csv
import sys
from itertools import groupby
from pathlib import Path

import laennec
from laennec.corpora import AnnotatedRecording, Corpus, Event


class WardCorpus(Corpus):
    """Recordings of one ward; every fact below appears on model cards and in messages."""

    name = "ward"
    title = "Auscultation recordings of our ward"
    homepage = "https://example.org/ward"
    licence = "CC BY 4.0"
    redistribution = "granted by the licence"
    origin = "Adults on one ward, recorded with one electronic stethoscope."
    reference_standard = "Two physicians listened to every cycle."
    limitations = ("One ward and one stethoscope.",)
    protocols = ("patient-60-20-20", "random-80-20")
    default_protocol = "patient-60-20-20"

    def find_recordings(self, folder: Path):
        """Yield each recording with its cycles."""
        table = folder / "cycles.csv"
        self.tables.append(table)  # the cycle table is built again when this file changes
        with table.open(newline="") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: row["file"])
        for name, cycles in groupby(rows, key=lambda row: row["file"]):
            cycles = list(cycles)
            yield AnnotatedRecording(
                recording_id=Path(name).stem,
                patient_id=cycles[0]["patient"],
                device=cycles[0]["device"],
                audio_path=folder / name,
                events=tuple(
                    Event(float(c["start_s"]), float(c["end_s"]), int(c["crackle"]), int(c["wheeze"])) for c in cycles
                ),
            )


def main(folder: str) -> None:
    """Load the corpus and show how a recipe names it."""
    corpus = laennec.load_corpus(WardCorpus, folder)
    for split, cycles in corpus.items():
        print(f"{split}: {len(cycles)} cycles of {len(set(cycles['patient_id']))} patients")
    print("in a recipe: corpus: {name: own_corpus:WardCorpus, data_dir: " + folder + "}")


if __name__ == "__main__":
    main(sys.argv[1])
