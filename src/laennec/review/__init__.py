"""People review what a model predicts, and their answers become a corpus."""

RULES = ("uncertain", "confident", "disagreement", "diverse", "random")
