"""Mappers and filters: pure functions on Arrow tables. Imports nothing else of this project, and no Ray."""
