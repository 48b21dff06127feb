"""`restart --lazy`: memory that arrives while the job runs (docs/lazy.md).

`choose.py` (pure) says what may come later; `hand_over.py` is the restarting process' side; `server.py` the process
that brings it; `books.py` (pure) what of which process is still to come, and where; `fetch.py` gets chunks from the
store.
"""
