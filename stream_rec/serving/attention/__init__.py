"""The two ways to attend to cached keys and values: a copy on a CPU, in place on a GPU."""
