"""Reusable task shapes, one a file, and the data behind the bundled suites."""
