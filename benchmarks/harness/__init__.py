"""Tools of every script: timing, memory, training, kept runs, reports."""
