"""Tasks of lm-eval over caramba's models."""
