"""The command line."""

from terrazzo.cli.app import main

__all__ = ["main"]
