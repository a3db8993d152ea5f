"""Pretraining: recipes, stages and runs. With fine-tuning the only code that uses Lightning."""
