"""Offline: reading logs, simulating a storefront, training and evaluating. Knows no Kafka."""
