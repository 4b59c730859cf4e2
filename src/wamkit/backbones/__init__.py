"""Pretrained transformer families; they know nothing of actions."""
