"""Codecs: pixels to latents and back, sentences to tokens. Import the module you need; nothing heavy is loaded here."""
