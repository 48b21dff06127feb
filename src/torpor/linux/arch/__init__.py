"""What differs between processor architectures: register layout, system call numbers, injected code."""
