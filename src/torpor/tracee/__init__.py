"""A stopped task as an object: freeze a tree, run system calls in it, read and write its memory."""
