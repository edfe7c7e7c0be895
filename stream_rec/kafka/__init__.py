"""Connections, consumers, producers, transactions, topics and dead letters. Knows no model."""
