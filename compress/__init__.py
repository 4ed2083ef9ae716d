"""A transformer and a piece of hardware in, a verified smaller engine out."""
