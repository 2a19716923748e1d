"""The report of an evaluation: its page, its sections and its plots."""
