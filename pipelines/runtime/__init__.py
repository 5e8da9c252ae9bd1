"""What every stage runs on: resources, storage, tracking, progress."""
