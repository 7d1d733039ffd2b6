"""Import paths of the training guide; the code lives in `bimact`."""
