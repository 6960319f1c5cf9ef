"""caramba's standard components: layers, attention, topologies, token data, optimizers, schedules."""

__version__ = "0.1.0"
