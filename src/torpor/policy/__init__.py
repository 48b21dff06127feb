"""What must be true before a restarted job may go on: data in, decisions out."""
