"""The start of MLA from a teacher's attention, a step a file."""
