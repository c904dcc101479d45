"""Trains a run: from a checked config to the last checkpoint."""
