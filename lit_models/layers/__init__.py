"""Layers that more than one architecture uses."""
