"""The processes of a run: which there are, how they start, that all live."""
