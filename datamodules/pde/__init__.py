"""Partial differential equations: verified solvers, and the trajectories that they generate."""
