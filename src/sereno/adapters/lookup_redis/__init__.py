"""Lookups in a Redis or Valkey server, which the API of several hosts shares.

address.py   where the server is, and what its errors mean
catalogue.py what is kept there under which names
link.py      the connection of a process that must not wait: an API's worker
store.py     the store: it follows the table, and opens what is served
"""
