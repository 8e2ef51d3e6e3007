"""The version of the package, which is the version of the program."""

__version__ = "0.1.0"
