"""Converts a run into an equivalent network of one column, or back."""
