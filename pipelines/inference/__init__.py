"""Embed images with PyTorch or ONNX: `stream_embeddings`, `embed_queries`, `export`, and more."""
