"""Measures how fast the parts of a run are on the machine at hand."""
