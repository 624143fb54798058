"""The blocks in the words of their hosts, Pyro and nflows, without mathematics of their own."""
