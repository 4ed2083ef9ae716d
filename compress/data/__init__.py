"""Text in, token windows and labelled examples out."""
