"""The release, where every room can read it without importing the package's root."""

VERSION = "0.1.0"
