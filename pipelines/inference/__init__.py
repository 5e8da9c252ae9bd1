"""Embed images with PyTorch or ONNX."""
