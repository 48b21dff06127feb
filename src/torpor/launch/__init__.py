"""How processes come to be in a job."""
