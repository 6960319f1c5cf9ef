"""Finding, comparing and showing runs: the commands ``runs``, ``compare`` and ``report``."""
