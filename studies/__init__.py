"""Studies: what a paper proves or counts, where little or nothing is trained."""
