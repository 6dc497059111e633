"""Lookups in a Redis or Valkey server, which the API of several hosts shares.

store.py     the store: it follows the table, and opens what is served
address.py   where the server is, and what its errors mean
catalogue.py what is kept there under which names
lock.py      who follows the table
home_id.py   whose table it is
filling.py   how the entries of an index are written
index.py     an index, as it is read
link.py      the connection of a process that must not wait: an API's worker
"""
