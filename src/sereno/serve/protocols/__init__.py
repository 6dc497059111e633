"""One file per protocol: a request of its kind becomes rows, and the answers become its reply. None knows the batcher."""
