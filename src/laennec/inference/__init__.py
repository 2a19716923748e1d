"""From recordings to predictions: timelines, pipelines, the page."""
