"""Measuring a model on this machine: `narrows profile`."""

from .bundle import open_bundle, profile_bundles
from .options import ProfileOptions

__all__ = ["ProfileOptions", "open_bundle", "profile_bundles"]
