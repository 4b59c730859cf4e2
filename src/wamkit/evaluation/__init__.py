"""Closed-loop evaluation under named protocols, and the report page. Importing the room loads no torch."""
