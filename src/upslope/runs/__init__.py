"""What a run leaves behind: its directory, its model file, live progress and films."""
