"""Studies: many runs for one question, planned in a file, run one after the other, compared in one table."""

from laennec.study.plan import Cell, Study, load_study
from laennec.study.run import run_study

__all__ = ["Cell", "Study", "load_study", "run_study"]
