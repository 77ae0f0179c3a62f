"""A package, so that its files may have the names of those in other folders."""
