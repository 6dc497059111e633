"""Lookup: key → the prediction that the last published run computed. Batch and serving share it; neither knows the other.

keys.py      a key: from a URL, from JSON, from the table's columns → the bytes that stand in an index
entries.py   a snapshot → its (key, prediction) pairs in the order of the keys, in bounded memory
pointer.py   which index is served, and whether the table has moved on; light
builder.py   a process of the server that follows the table
"""
