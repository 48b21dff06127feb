"""`restart --lazy`: memory that arrives while the job runs (docs/lazy.md).

`choose.py` (pure) says what may come later; `hand_over.py` is the restarting process' side; `arrival.py` the process
that brings it, and `server.py` what it does; `books.py` (pure) what of which process is still to come, and where;
`fetch.py` gets chunks from the store.
"""
