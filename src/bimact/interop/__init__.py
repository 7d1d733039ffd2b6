"""Conversion of policies of other software to runs of bimact, and back."""
