"""A simulated shop, without end and reproducible by its seed."""
