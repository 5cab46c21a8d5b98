"""Model in, bundle out: the only room that knows torch and onnx."""
