"""The live page of runs: `python -m curation dashboard`."""
