"""Pretraining: the only place that knows Lightning."""
