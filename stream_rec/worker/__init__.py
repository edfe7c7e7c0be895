"""The inference worker: reads windows, runs the engine, publishes recommendations in transactions."""
