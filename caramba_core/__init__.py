"""caramba: manifest-driven transformer research.

What plugins may import of it is listed in ``docs/public.md``, module by module; the package itself imports nothing.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
