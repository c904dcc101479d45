"""Searches the fastest layout on a machine."""
