"""Servers that answer the same question, one script each; known.py lists them. They import no more than they need."""
