"""What is known of published corpora and encoders beyond what a run records.

Decisions: one table, facts only, each from the publication or page that the citation names; a corpus that is not in
it has to be described by whoever publishes a model of it. Licences are those of the data and of the released weights,
not of laennec.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class CorpusFacts:
    """A published corpus.

    Attributes:
        title: Its name for readers.
        origin: Who was recorded where, with what.
        reference: Who said what is heard.
        licence: What its owners ask for.
        limits: What a model of it cannot know.
        url: Where it is published.
    """

    title: str
    origin: str
    reference: str
    licence: str
    limits: tuple[str, ...]
    url: str | None = None


CORPORA: dict[str, CorpusFacts] = {
    "sprsound": CorpusFacts(
        "SPRSound",
        "Children from 1 month to 18 years, recorded at the paediatric respiratory department of one hospital "
        "(Shanghai Children's Medical Center) with one model of electronic stethoscope (Yunting Model II, 8 kHz) at "
        "four places of the back and sides.",
        "Events were marked and named by experienced paediatric physicians listening to the recordings; no other test "
        "stands behind the labels. Fine and coarse crackles count as crackle; wheeze, rhonchi and stridor as wheeze.",
        "open access; its authors ask to be cited (see the terms in its repository)",
        ("Children of one hospital and one stethoscope: nothing is known of adults, other devices or other places.",),
        "https://github.com/SJTU-YONGFU-RESEARCH-GRP/SPRSound",
    ),
    "icbhi2017": CorpusFacts(
        "ICBHI 2017 Respiratory Sound Database",
        "126 patients of all ages, healthy and with chronic or acute respiratory diseases, recorded by two research "
        "teams in Portugal and Greece with four devices at seven places of the chest.",
        "Respiratory cycles were marked for crackles and wheezes by respiratory health professionals listening to the "
        "recordings; no other test stands behind the labels.",
        "freely available for research",
        (
            "Device, place and disease go together in this corpus, so part of a score can come from the device.",
            "The published split has patients 156 and 218 in both parts.",
        ),
        "https://bhichallenge.med.auth.gr/ICBHI_2017_Challenge",
    ),
    "physionet2016": CorpusFacts(
        "PhysioNet/CinC Challenge 2016",
        "Heart sounds that several research groups recorded in clinics and at home, from healthy people and from "
        "patients with heart disease.",
        "Recordings are called normal or abnormal after the clinical diagnosis of the person.",
        "Open Data Commons Attribution License (ODC-By)",
        ("Patients are not published, so one person may be in several parts.", "Heart sounds, not lung sounds."),
        "https://physionet.org/content/challenge-2016/",
    ),
    "synthetic": CorpusFacts(
        "laennec's synthetic corpus",
        "Nobody: sounds computed from a physical model of breathing, crackles and wheezes.",
        "Labels are exact, because the sounds were put in.",
        "Apache-2.0 (made by laennec)",
        ("Trained on computed sounds: its scores say nothing about lungs.",),
    ),
}

# encoder type -> name and licence of the weights that its authors released
ENCODERS: dict[str, tuple[str, str]] = {
    "mobilenet": ("EfficientAT MobileNetV3, pre-trained on AudioSet", "MIT"),
    "ast": ("Audio Spectrogram Transformer, pre-trained on AudioSet", "BSD-3-Clause"),
    "beats": ("BEATs, pre-trained on AudioSet", "MIT"),
    "whisper": ("the encoder of Whisper, trained on speech", "MIT"),
}
