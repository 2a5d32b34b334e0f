"""Models the project can make itself."""
