"""WorldVLA: one autoregressive transformer over text, image and action ids."""
