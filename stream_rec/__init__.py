"""Streaming, real-time behaviour prediction on Kafka. The rooms of the package are described in docs/design.md."""

__version__ = "0.1.0"
