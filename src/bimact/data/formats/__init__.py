"""Readers of dataset formats: each module has a `FORMAT`."""

MODULES = tuple(
    f"{__name__}.{name}"
    for name in ("guide_npy", "raw_memmap", "lerobot", "aloha_hdf5", "robomimic_hdf5", "zarr_replay")
)
