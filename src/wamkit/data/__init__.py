"""Data room: record, read, inspect, normalize and window robot datasets in the LeRobot format.

Import the file you need (`wamkit.data.lerobot`, `wamkit.data.writer`, …); this package itself loads nothing.
"""
