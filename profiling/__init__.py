"""Measuring a model on this machine: `narrows profile`. Imports nothing, so that `memory` is quick to start."""
