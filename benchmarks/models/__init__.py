"""Flows of this project, trained before a measurement."""
