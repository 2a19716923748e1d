"""Review of recordings: which spans a person looks at, and in which order."""
