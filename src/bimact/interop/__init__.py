"""Policies of other software: into a run of bimact, and back."""
