"""The POSIX services, one module per service: what the kernel keeps, how it is captured, how it is asked for again."""
