"""Solvers of the block choice."""
