"""What people and programs read of an audit and of a history. No file of this package imports another of it."""
