"""World-Value-Action: a multi-view video diffusion transformer with a value expert and an action expert."""
