"""Other packages as contenders: their flows, their defaults, their inverses."""
