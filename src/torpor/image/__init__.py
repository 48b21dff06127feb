"""What a checkpoint is: the manifest and its versions."""
