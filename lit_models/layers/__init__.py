"""Layers that more than one subject uses."""
