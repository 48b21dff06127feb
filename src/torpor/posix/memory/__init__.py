"""Memory: the areas of a process, what is in them, and the layout the kernel keeps beside them."""
