"""Serve answers to assistants: a server of the Model Context Protocol over standard input and output."""
