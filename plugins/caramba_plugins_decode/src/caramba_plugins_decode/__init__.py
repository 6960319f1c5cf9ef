"""Text in, text out: the commands ``generate`` and ``chat``, chat templates, speculative decoding."""
