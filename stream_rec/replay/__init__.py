"""Sending the events of a log or a topic again, and the report of what became of them."""
