"""Flows of this project: variants, prototypes, and flows trained before a measurement."""
