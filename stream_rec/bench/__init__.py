"""Benchmarks: commands that anyone can run; both sides of a ratio are measured in one process."""
