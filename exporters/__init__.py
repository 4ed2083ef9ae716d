"""The ways out: one a file or folder."""
