"""A version as a model for other programs: heads as stock modules, ONNX or plain tensors, and a card."""
