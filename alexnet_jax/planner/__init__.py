"""Predicts the time of a step from machine and plan, and finds the fastest."""
