"""The console: a page to look at the stream and at single predictions, and why they are what they are."""
