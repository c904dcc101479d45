"""Compiles a network on a layout into an audited training step."""
