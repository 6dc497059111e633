"""Batch: one run, from its source to its published snapshot."""
