"""Measurements of this package beside the published ones; each script prints its table."""
