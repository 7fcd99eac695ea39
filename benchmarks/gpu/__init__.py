"""The first hour on a GPU: see README.md of this folder."""
