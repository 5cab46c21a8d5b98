"""From profiles to plans: pure functions that know no torch, no ONNX and no network."""
