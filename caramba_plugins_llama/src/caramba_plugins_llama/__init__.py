"""The Llama family in caramba: checkpoints, tokenizers and presets."""
