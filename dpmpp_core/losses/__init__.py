"""One loss a file; each is tested against a naive transcription of its formula."""
