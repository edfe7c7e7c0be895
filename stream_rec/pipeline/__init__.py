"""The Kafka side: events to windows to recommendations. No torch here, except in the worker through the engine."""
