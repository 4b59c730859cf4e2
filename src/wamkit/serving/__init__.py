"""A policy as a server that robots already speak to."""
