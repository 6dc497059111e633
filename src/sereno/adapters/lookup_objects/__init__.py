"""Lookups in an object store: each index is one object that is built once, and `served.json` says which one is served.

Whoever follows the table builds an index on its own disk, writes it as an object with a name of its own, and has
`served.json` lead to it, on condition that this is as it was read: so whatever dies at any moment leaves what was served
before, or what is served now. A lock that must be renewed keeps two from building at once; should both believe that they
have it, the condition lets one of them win. An object is removed only after a write of `served.json` that does not name it:
no write that was begun before can succeed after that, however late it arrives, so none can name what is gone.

A server never asks the store for an answer. It copies the index to its own disk, compares its SHA-256, and only then changes
over; `CopiedLookups` is what its workers read. Where the store does not answer, or has a damaged object, it goes on from the
copy that it has.

store.py     the store: it follows the table, and knows what there is to do
lock.py      who builds
parts.py     what is built from, where that lies in a bucket
fetching.py  what is served, and how it comes to a machine
copies.py    the copy there

What lies there under which names: `sereno/lookup/packed.py`.
"""
