"""Results: one Markdown page for each script, and the pictures."""
