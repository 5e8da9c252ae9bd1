"""Embed images with PyTorch or ONNX: `embed_images`, `embed_queries`, `export`, `OnnxModel`."""
