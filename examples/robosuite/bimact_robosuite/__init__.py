"""robosuite's two-arm tasks for bimact."""
