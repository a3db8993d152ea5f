"""From slices to an answer: regions, cell types, what sets them apart, and labels of a reference."""
