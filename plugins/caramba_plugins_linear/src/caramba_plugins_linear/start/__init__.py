"""The maps of the far part, from a teacher's attention: a step a file."""
