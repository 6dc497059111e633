"""The processes of a server: who holds the sockets, who answers, who works beside them, and what they share.

supervisor.py    the process that was started: sockets, workers, signals
workers.py       the workers, as the supervisor has them: their slots of the board, who holds which sockets
process.py       one of them
worker.py        the process that loads the models and answers
control.py       what the two say to each other; board.py: the memory that all share
sockets.py       what is listened on
watching.py      has a file changed (--watch); belongs.py: which files a worker reads
compacting.py    the processes beside: they make tables of answers
indexing.py      and indexes of lookups
"""
