"""Models, one room a subject: one architecture a file, beside its tasks, metrics and pictures."""
