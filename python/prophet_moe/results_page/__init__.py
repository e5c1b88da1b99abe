"""Reads result files and draws them: one HTML page that needs no network (extra `report`)."""
