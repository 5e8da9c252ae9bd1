"""Person images: from a folder in a known layout to one manifest, and from files to pixels."""
