"""Programs for users that are built on the library: each runs its rows in processes apart."""
