"""Text to speech: a sentence in, samples out as they are made."""
