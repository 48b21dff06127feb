"""A job over hosts: who decides, and how all hosts come to one checkpoint or to none.

`core.py` is the coordinator and `host.py` a host's side of it, both pure state machines: what happened goes in, with
the time at which it did, and what is to be done comes out. No socket, clock, file or thread is in here. `words.py` is
what they say to each other, `phases.py` the order of things, `record.py` what a successor needs, `attempt.py` one
checkpoint or restart under way, `conversations.py` which two ends of connections belong together.
"""
