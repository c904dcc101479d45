"""Saves the state of a run, verifies it and reads it under any layout."""
