"""Checks whether a run would start here, and what links the devices."""
