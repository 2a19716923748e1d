"""What people train on, as tables of respiratory cycles."""

from laennec.cache import cache_root
from laennec.corpora.base import CYCLE_FEATURES, Corpus, CorpusOptions
from laennec.corpora.check import AuditReport, check_corpus, check_cycle_table
from laennec.corpora.folder.corpus import Folder
from laennec.corpora.hub.corpus import Hub
from laennec.corpora.hub.publish import export_corpus
from laennec.corpora.icbhi2017 import Icbhi2017
from laennec.corpora.load import check_duplicates, load_corpus, provenance
from laennec.corpora.physionet2016 import PhysioNet2016
from laennec.corpora.recordings import AnnotatedRecording, Event, UnusableRecordingsError
from laennec.corpora.several import concatenate_corpora
from laennec.corpora.splits import PROTOCOLS, split_table
from laennec.corpora.sprsound import SprSound
from laennec.corpora.synthetic import Synthetic
from laennec.corpora.waveforms import CycleWaveforms, decode_all

__all__ = [
    "CYCLE_FEATURES",
    "PROTOCOLS",
    "AnnotatedRecording",
    "AuditReport",
    "Corpus",
    "CorpusOptions",
    "CycleWaveforms",
    "Event",
    "Folder",
    "Hub",
    "Icbhi2017",
    "PhysioNet2016",
    "SprSound",
    "Synthetic",
    "UnusableRecordingsError",
    "cache_root",
    "check_corpus",
    "check_cycle_table",
    "check_duplicates",
    "concatenate_corpora",
    "decode_all",
    "export_corpus",
    "load_corpus",
    "provenance",
    "split_table",
]
