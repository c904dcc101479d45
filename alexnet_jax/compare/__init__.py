"""Compares layouts and meshes: bytes sent, memory, computation."""
