"""Checks a config and builds the objects of a run from it."""
