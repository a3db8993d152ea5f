"""The systems: one folder each, none of which imports another."""
