"""Models with latent attention, for other programs."""
