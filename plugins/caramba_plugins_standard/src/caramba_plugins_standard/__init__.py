"""caramba's standard components: layers, attention, topologies, token data, optimizers, schedules."""
