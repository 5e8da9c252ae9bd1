"""The index of a gallery: build, search, calibrate, and the search app."""
