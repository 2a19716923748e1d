"""Studies: many runs for one question, planned in a file, run one after the other, compared in one table."""

from laennec.study.plan import Cell, Study, load_study
from laennec.study.run import PUBLISHED, run_study

__all__ = ["PUBLISHED", "Cell", "Study", "load_study", "run_study"]
