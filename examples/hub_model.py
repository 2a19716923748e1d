"""Predict recordings with a model of the Hub through transformers: `python examples/hub_model.py MODEL RECORDING`.

MODEL is a repository ("owner/name") or a folder that `save_model` or `laennec export` wrote.
"""

import argparse

from transformers import pipeline

from laennec import LaennecForAudioClassification  # importing the class registers it with the Auto classes

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("recordings", nargs="+")
given = parser.parse_args()

classify = pipeline("audio-classification", model=given.model)
assert isinstance(classify.model, LaennecForAudioClassification)
for recording in given.recordings:
    for label in classify(recording):
        print(f"{recording}: {label['label']} {label['score']:.3f}{' present' if label['present'] else ''}")
