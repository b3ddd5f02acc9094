"""A bundle in other formats.

- `sentence_transformers`: as a sentence-transformers model; `onnx`: as ONNX graphs; `command`: `towers export`.
"""
