"""Logs and catalogues: reading them from files, and the windows that they make. Knows no Kafka."""
