"""The web page that predicts, and its server."""
