"""What several floors speak of: refusals and errors, references to saved bytes, sinks and sources."""
