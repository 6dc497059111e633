"""Published predictions by key over HTTP: Sereno, its peers and what bounds them.

tables.py     what is looked up, and the stores that peers and bounds read it from
campaign.py   a server under a load of random keys, in rounds; the command
build.py      what it takes to build the index
swap.py       from a commit to answers, under a steady load (steady.py)
report.py     tables and targets
"""
