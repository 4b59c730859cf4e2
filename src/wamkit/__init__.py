"""wamkit: world-action models, trained, planned with, evaluated in closed loop and served to robots.

Importing the package loads no torch; import what you use from its rooms (`wamkit.policy`, `wamkit.data`, …).
"""

__version__ = "0.1.0"
