"""Graphs: molecules, superpixels, stars and trees, cached with their elimination plans."""
