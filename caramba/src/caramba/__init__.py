"""``python -m caramba`` is the command ``caramba``; the library is :mod:`caramba_core`."""
