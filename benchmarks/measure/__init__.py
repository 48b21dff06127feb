"""What benchmarks/run.py measures, and with what."""
