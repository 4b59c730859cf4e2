"""The parts of an inspection: metadata, videos, rows, statistics, and the policy that a dataset is meant for.

Each looks at one thing and gives its findings; `wamkit.data.inspect` runs them all in one pass.
"""
