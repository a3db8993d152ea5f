"""Plain PyTorch modules, constructible from their config alone; they know tensors and nothing of slices."""
