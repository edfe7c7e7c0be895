"""Everything on one machine: an embedded Kafka broker, child processes and the demo."""
