"""Measurements of this package beside other packages; ``run/`` has the scripts."""
