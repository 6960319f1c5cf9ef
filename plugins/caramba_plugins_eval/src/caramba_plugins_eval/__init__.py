"""Measuring models: mode ``eval``, the command ``eval`` and the metrics that they take."""
