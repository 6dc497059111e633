"""`sereno serve --on ray`: our own server on nodes of a Ray cluster, placed and started again by Ray."""
