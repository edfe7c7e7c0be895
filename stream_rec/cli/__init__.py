"""The commands. Each parses its options and calls one room; what is heavy is imported by the command that needs it."""
