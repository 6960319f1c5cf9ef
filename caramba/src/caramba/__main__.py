"""``python -m caramba``."""

from caramba_core.cli import main

if __name__ == "__main__":
    main()
