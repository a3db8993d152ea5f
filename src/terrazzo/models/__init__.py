"""Models: base class, checkpoints and hub, loading, options of embed, baselines; the systems subclass the base."""
