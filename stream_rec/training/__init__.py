"""From a log and a catalogue to a model folder."""
