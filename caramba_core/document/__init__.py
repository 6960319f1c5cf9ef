"""A manifest as it was written: its texts, its values with their places, and what is wrong with them."""
