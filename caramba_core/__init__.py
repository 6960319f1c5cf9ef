"""caramba: manifest-driven transformer research.  What may be imported of it, and from where, is in docs/public.md."""

__all__ = ["__version__"]

__version__ = "0.2.0"
