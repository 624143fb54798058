"""Posteriors, densities and toy data to fit."""
