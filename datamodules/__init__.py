"""Data modules, one room a subject; what all subjects share lies on top."""
