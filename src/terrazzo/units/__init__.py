"""How a slice is cut into training units; these rooms know arrays only, never torch."""
