"""The servers that answer by key. Each file runs in an environment of its own, as `known.py` says."""
