"""The life of a run: folders, checkpoints, the loop, measurement."""
