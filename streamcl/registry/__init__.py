"""The commit log, where it lies, and the versions it makes visible."""
