"""Counts parameters and multiplications, layer by layer."""
