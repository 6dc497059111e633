"""`sereno up`: the processes that it keeps running, and how they are tied to it."""
