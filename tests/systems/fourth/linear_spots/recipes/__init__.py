"""Recipes of the linear autoencoder."""
