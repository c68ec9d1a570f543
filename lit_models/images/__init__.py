"""Images: networks that read grids of patches or pixels, and classification."""
