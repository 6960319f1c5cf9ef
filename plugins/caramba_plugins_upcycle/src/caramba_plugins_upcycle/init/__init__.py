"""``caramba init``: from a checkpoint at hand to a manifest that converts it."""
