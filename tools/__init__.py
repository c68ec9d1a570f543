"""Commands around the experiments: what is there, and what works on this machine."""
