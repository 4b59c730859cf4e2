"""Layers that know nothing of robots: attention, rotary positions, feed-forward, timestep modulation."""
