"""Evaluates trained runs: errors, intervals, predictions."""
