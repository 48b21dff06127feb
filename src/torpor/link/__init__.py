"""How the supervisors and the coordinator of a job over several hosts speak: over NATS, or within one process.

On one host none of this is imported or started.
"""
