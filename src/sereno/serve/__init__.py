"""The online API: the same model file answers requests."""
